"""Mutation testing: makes random edits to the Python code, one at a time, and shows those that no test notices.

    python tools/mutate_python.py                                   # 20 mutants of each of six packages
    python tools/mutate_python.py routing data --mutants 50 --seed 1 --json mutants.json
    python tools/mutate_python.py train --only train/schedule.py --mutants 1000

Edits: comparisons, arithmetic, and/or, negations, constants ± 1, bounds of slices and ranges, swapped arguments, min
and max, return values, and deleted statements. Mutants are made in copies of the project folder, never in the folder
itself. Of the quick tests, only those that run the changed line are used, fastest first, until one fails. Which tests
run which lines is measured once, and again for tests that have changed or run changed sources (--map keeps the
measurement between runs). Only lines that a test runs in its own process count, not those of processes that it starts.

A mutant that no test rejects is printed as a diff. Some mutants do not change the behaviour ("equivalent" mutants),
which only a reader can tell. Exits with code 1 if a mutant survives.

Why not a library: mutmut 3 puts every variant of a function behind a dispatcher, which MindSpore cannot compile, and
skips decorated functions; cosmic-ray starts the whole test command, and with it MindSpore, for each mutant.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("routing", "data", "experts", "checkpoint", "train", "parallel")
SKIPPED = ("plot.py",)  # modules that only plot; see also `edits.find`
WORKERS = 2
VERDICTS = ("killed", "timed out", "survived")

sys.path.insert(0, str(Path(__file__).parent))

# Nothing from mindpangu may be imported here: the forked tests would find it loaded, without the mutants.

from python_mutants.coverage import Coverage, Test, digest, measure  # noqa: E402
from python_mutants.edits import Mutant, find  # noqa: E402
from python_mutants.tree import copy_tree, preload, run_tests  # noqa: E402


@dataclass(frozen=True)
class Result:
    """The outcome of a mutant.

    Attributes:
        verdict: one of `VERDICTS`.
        tests: number of tests that were chosen.
        left_out: number of tests that run the line but would have taken too long.
        line_runs: True if a test runs the line in its own process.
        seconds: duration of the run.
    """

    mutant: Mutant
    verdict: str
    tests: int
    left_out: int
    line_runs: bool
    seconds: float


def sample(packages: Iterable[str], count: int, seed: int, only: list[str]) -> list[Mutant]:
    """Draws up to `count` mutants of each package."""
    drawn = []
    for package in packages:
        mutants: list[Mutant] = []
        for path in sorted((ROOT / "mindpangu" / package).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if path.name not in SKIPPED and (not only or any(part in name for part in only)):
                mutants += find(name, path.read_bytes())
        rng = random.Random(f"{seed} {package}")
        drawn += rng.sample(mutants, min(count, len(mutants)))
    return drawn


class Workers:
    """Processes that each have a copy of the project folder."""

    def __init__(self, folder: Path):
        context = multiprocessing.get_context("fork")
        self.trees = context.SimpleQueue()
        for index in range(WORKERS):
            tree = folder / f"tree_{index}"
            tree.mkdir()
            copy_tree(ROOT, tree)
            self.trees.put(tree)
        self.pool = context.Pool(WORKERS, initializer=_take_tree, initargs=(self.trees,))

    def measure(self, files: list[str]) -> Iterator[tuple[str, dict]]:
        """Yields (test file, record of `coverage.measure`) in the order in which they finish."""
        return self.pool.imap_unordered(_measure, files)

    def test(self, tasks: list[tuple[Mutant, list[str], float]]) -> Iterator[tuple[Mutant, str, float]]:
        """Yields (mutant, verdict, seconds) in the order in which they finish. A task is (mutant, tests, timeout)."""
        return self.pool.imap_unordered(_test, tasks)


_tree = Path()  # of this worker


def _take_tree(trees: "multiprocessing.SimpleQueue[Path]") -> None:
    global _tree
    _tree = trees.get()


def _measure(file: str) -> tuple[str, dict]:
    return file, measure(_tree, file)


def _test(task: tuple[Mutant, list[str], float]) -> tuple[Mutant, str, float]:
    mutant, tests, timeout = task
    start = time.monotonic()
    path = _tree / mutant.file
    source = path.read_bytes()
    path.write_bytes(mutant.apply(source))
    try:
        code = run_tests(_tree, tests, timeout)
    finally:
        path.write_bytes(source)
    verdict = "timed out" if code is None else "survived" if code == 0 else "killed"
    return mutant, verdict, time.monotonic() - start


def load_coverage(workers: Workers, paths: list[str], kept: Path | None) -> Coverage:
    """Measures the test files in `paths`, except for those whose record in the file `kept` is up to date."""
    records: dict[str, dict] = json.loads(kept.read_text()) if kept and kept.exists() else {}
    found = [[ROOT / name] if name.endswith(".py") else sorted((ROOT / name).rglob("test_*.py")) for name in paths]
    files = [str(path.relative_to(ROOT)) for in_folder in found for path in in_folder]
    stale = [file for file in files if file not in records or records[file]["digest"] != _digest(file, records[file])]
    for index, (file, record) in enumerate(workers.measure(stale), 1):
        records[file] = record | {"digest": _digest(file, record)}
        seconds = sum(test["seconds"] for test in record["tests"].values())
        print(f"measured {index}/{len(stale)} {file}: {len(record['tests'])} tests, {seconds:.0f} s", flush=True)
        for name in record["failed"]:
            print(f"    {name} fails without a mutant and is left out", flush=True)
        if kept:
            kept.write_text(json.dumps(records))
    return Coverage({name: Test(**test) for file in files for name, test in records[file]["tests"].items()})


def _digest(file: str, record: dict) -> str:
    return digest(ROOT, file, {source for test in record["tests"].values() for source in test["lines"]})


def plan(mutants: list[Mutant], coverage: Coverage, budget: float) -> dict[Mutant, tuple[list[str], int, float]]:
    """Returns mutant → (tests to run, number of tests left out, timeout in seconds).

    Args:
        budget: measured seconds that the tests of a mutant may take together; at least one test is run.
    """
    plans = {}
    for mutant in mutants:
        tests = coverage.covering(mutant.file, mutant.line)
        seconds = 0.0
        chosen = []
        for test in tests:
            seconds += coverage.tests[test].seconds
            if chosen and seconds > budget:
                break
            chosen.append(test)
        expected = sum(coverage.tests[test].seconds for test in chosen)
        plans[mutant] = chosen, len(tests) - len(chosen), 30 + 3 * expected
    return plans


def table(results: list[Result]) -> str:
    """Formats a table with one line per package."""
    lines = [f"{'package':12}{'tried':>8}{'killed':>8}{'timed out':>11}{'survived':>10}{'noticed':>9}"]
    packages = list(dict.fromkeys(each.mutant.file.split("/")[1] for each in results))
    for name in [*packages, "all"]:
        counts = Counter(each.verdict for each in results if name in ("all", each.mutant.file.split("/")[1]))
        tried = sum(counts.values())
        noticed = (tried - counts["survived"]) / tried
        lines.append(
            f"{name:12}{tried:>8}{counts['killed']:>8}{counts['timed out']:>11}{counts['survived']:>10}{noticed:>9.1%}"
        )
    return "\n".join(lines)


def describe(result: Result) -> str:
    """Describes a survivor: its line, kind, tests, and diff."""
    mutant = result.mutant
    tests = f"{result.tests} tests" if result.line_runs else f"no test runs this line; {result.tests} of its package"
    left_out = f", {result.left_out} left out" if result.left_out else ""
    diff = mutant.diff((ROOT / mutant.file).read_bytes())
    return f"{mutant.file}:{mutant.line} {mutant.kind} ({tests}{left_out})\n{diff}"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help=f"packages of mindpangu: {', '.join(PACKAGES)}")
    parser.add_argument("--mutants", type=int, default=20, help="mutants of each package (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed that chooses the mutants (default: 0)")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="only files whose path contains a PART")
    parser.add_argument(
        "--tests", nargs="+", metavar="PATH", help="test files or folders (default: those of the six packages)"
    )
    parser.add_argument("--budget", type=float, default=180, metavar="S", help="seconds of tests per mutant (180)")
    parser.add_argument("--map", type=Path, metavar="FILE", help="keep in this file which tests run which lines")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parser.add_argument("--list", action="store_true", help="print the mutants and exit")
    arguments = parser.parse_args()
    packages = arguments.packages or PACKAGES
    for package in packages:
        if not (ROOT / "mindpangu" / package).is_dir():
            parser.error(f"mindpangu has no package {package}")

    mutants = sample(packages, arguments.mutants, arguments.seed, arguments.only)
    if arguments.list:
        for mutant in mutants:
            print(f"{mutant.file}:{mutant.line} {mutant.kind}\n{mutant.diff((ROOT / mutant.file).read_bytes())}")
        return
    if not mutants:
        parser.error("there is nothing to mutate")

    paths = arguments.tests or [f"tests/{package}" for package in PACKAGES]
    with tempfile.TemporaryDirectory(prefix="mutants_") as folder:
        os.nice(5)
        preload()
        workers = Workers(Path(folder))
        coverage = load_coverage(workers, paths, arguments.map)
        plans = plan(mutants, coverage, arguments.budget)
        results = [Result(mutant, "survived", 0, 0, False, 0.0) for mutant in mutants if not plans[mutant][0]]
        tasks = [(mutant, tests, timeout) for mutant, (tests, _, timeout) in plans.items() if tests]
        for index, (mutant, verdict, seconds) in enumerate(workers.test(tasks), 1):
            tests, left_out, _ = plans[mutant]
            line_runs = coverage.runs(mutant.file, mutant.line)
            results.append(Result(mutant, verdict, len(tests), left_out, line_runs, round(seconds, 1)))
            position = f"{mutant.file}:{mutant.line}"
            print(f"{index:4}/{len(tasks)} {position:50} {mutant.kind:14} {verdict:10} {seconds:6.1f} s", flush=True)
        workers.pool.terminate()
        shutil.rmtree(folder, ignore_errors=True)

    survivors = [each for each in results if each.verdict == "survived"]
    print("", *map(describe, survivors), "", table(results), sep="\n")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(each) for each in results], indent=1) + "\n")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
