"""Breaks the AscendC kernels in every way that their style invites, and shows that the emulator rejects each mutant.

    python tools/mutate_kernels.py [--only NAME …] [--list]

There are two kinds of mutants: sources that lack one of the statements that order, free, wait, or declare the kernel's
type, and sources with one of the wrong bounds, tiles, prefixes, and formulas that an operator lists in its
`emulation.py`. A mutant is rejected if a rule or the reference rejects it on one of the two cores, dav-c100 and
dav-c220. The tool prints SURVIVED for a mutant that is not rejected, and exits with code 1.
"""

import argparse
import multiprocessing
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ascend_ops import emulator
from ascend_ops.emulator.build import OPERATORS
from ascend_ops.emulator.cases import Shape, WrongResult
from ascend_ops.emulator.kernels import Mutants, check, kernels

TIMEOUT_S = 240
CHIPS = ("ascend910", "ascend910b")  # one for each core


@dataclass(frozen=True)
class Mutant:
    """One change of one source.

    Attributes:
        name: describes the change.
        file: path below ascend_ops.
        position: offset of the change in the file.
        old: text at this position.
        new: text that replaces it.
        kernel: name of the kernel that is run.
        tight: whether it is run on rows that fill the unified buffer to its last granule.
    """

    name: str
    file: str
    position: int
    old: str
    new: str
    kernel: str
    tight: bool = False


# statements that order, free, wait, or declare the kernel's type; each mutant lacks one of them
STATEMENTS = re.compile(
    r"^ *(Order<HardEvent::\w+>\(\);|PipeBarrier<PIPE_V>\(\);|sync_\(\);|\w+\.EnQue\(\w+\);|\w+\.FreeTensor\(\w+\);"
    r"|SetFlag<kEvent>\(id\);|WaitFlag<kEvent>\(id\);|KERNEL_TASK_TYPE_DEFAULT\(\w+\);)",
    re.MULTILINE,
)


def mutants() -> Iterator[Mutant]:
    """Yields the mutants of every kernel that an operator's `emulation.py` describes."""
    for kernel in kernels().values():
        for file in kernel.sources:
            yield from without_statements(kernel.name, file)
        yield from replacements(kernel.name, kernel.mutants)
        yield from replacements(kernel.name, kernel.tight_mutants, tight=True)


def without_statements(kernel: str, file: str) -> Iterator[Mutant]:
    """Yields one mutant for each statement of a source that `STATEMENTS` matches."""
    text = (OPERATORS / file).read_text()
    for match in STATEMENTS.finditer(text):
        statement = match.group(1)
        line = text.count("\n", 0, match.start(1)) + 1
        yield Mutant(f"{Path(file).name}:{line} without {statement}", file, match.start(1), statement, ";", kernel)


def replacements(kernel: str, changes: Mutants, tight: bool = False) -> Iterator[Mutant]:
    """Yields one mutant per replacement that an `emulation.py` lists."""
    for file, of_file in changes.items():
        text = (OPERATORS / file).read_text()
        for name, (old, new) in of_file.items():
            if old not in text:
                raise SystemExit(f"mutate_kernels: {name}: {file} has no {old!r} any more")
            title = f"forgotten on the host: {name}" if tight else name
            yield Mutant(title, file, text.index(old), old, new, kernel, tight=tight)


def verdict(mutant: Mutant, folder: Path) -> str:
    """Returns the rule that rejects a mutant, "result" if its result is wrong, and "" if nothing rejects it."""
    sources = folder / "ascend_ops"
    folders = ["ascend", *(f"{operator}/ascend" for operator in set(emulator.KERNELS.values()))]
    for path in folders:
        shutil.copytree(OPERATORS / path, sources / path, ignore=shutil.ignore_patterns("*.py", "__pycache__"))

    text = (OPERATORS / mutant.file).read_text()
    end = mutant.position + len(mutant.old)
    (sources / mutant.file).write_text(text[: mutant.position] + mutant.new + text[end:])
    try:
        for chip in CHIPS:
            operator = emulator.compile_operator(mutant.kernel, chip, sources=sources, folder=folder)
            for seed, shape in enumerate(TIGHT if mutant.tight else SHAPES):
                check(operator, shape, "float16", seed)
    except emulator.EmulatorError as error:
        return error.rule
    except WrongResult:
        return "result"
    return ""


# many tiles and batches per core; more cores than granules; rows that are split into columns; ids of every kind
SHAPES = (
    Shape(tokens=1500, hidden=64, experts=8, slots=3, ranks=4, cores=2),
    Shape(tokens=203, hidden=48, experts=6, slots=2, ranks=2, skew=0.5, cores=7),
    Shape(tokens=20, hidden=80_016, experts=2, cores=3),
    Shape(tokens=700, hidden=32, experts=4, slots=2),
)
# some of these rows fill the buffers to the last granules
TIGHT = tuple(Shape(tokens=250, hidden=hidden, experts=64, slots=8) for hidden in range(3_200, 12_800, 48))


def run(mutant: Mutant) -> str:
    """Runs `verdict` in a separate process, which may hang or crash."""
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=lambda: sender.send(verdict(mutant, Path(folder))))
        process.start()
        sender.close()
        process.join(TIMEOUT_S)
        if process.is_alive():
            process.kill()
            return "hangs"
        return receiver.recv() if receiver.poll() else f"crashes ({process.exitcode})"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only mutants whose name contains one of these")
    parser.add_argument("--list", action="store_true", help="print the names of the mutants and exit")
    arguments = parser.parse_args()

    only = arguments.only or [""]
    selected = [mutant for mutant in mutants() if any(part in mutant.name for part in only)]
    if arguments.list:
        print("\n".join(each.name for each in selected))
        return

    survivors = 0
    with ThreadPoolExecutor(2) as pool:
        for mutant, rule in zip(selected, pool.map(run, selected), strict=True):
            rejected = rule and rule != "compile" and not rule.startswith(("hangs", "crashes"))
            survivors += not rejected
            print(f"{mutant.name:75} {rule if rejected else f'SURVIVED {rule}'}", flush=True)
    print(f"{len(selected) - survivors} of {len(selected)} rejected")
    sys.exit(survivors > 0)


if __name__ == "__main__":
    main()
