"""Drills: damage, kills, hostile files, races, and full disks, with counts of what was tried, held, and failed.

The quick tests make a few attempts of each kind; `bash tests/run.sh --drills` makes all of them.
"""

import contextlib
import random
import shutil
import sys
from collections import defaultdict
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the modules that are not tests

from verbs import options, run_verb

_COUNTS = defaultdict(lambda: [0, 0])  # kind → tried, failed


class Drill:
    """Counts attempts. A failed attempt does not end the test; all failures are reported at its end.

    Attributes:
        rng: random numbers that are the same in every session, but different in each test.
    """

    def __init__(self, all_of_them: bool, seed: str):
        self.rng = random.Random(seed)
        self.failures = []
        self._all = all_of_them

    def attempts(self, quick: int, full: int) -> range:
        """Returns the numbers of the attempts to make: `quick` with the quick tests, `full` with --drills."""
        return range(full if self._all else quick)

    def some_of(self, cases: list, quick: int) -> list:
        """Returns all cases with --drills, and a random `quick` of them with the quick tests."""
        return cases if self._all else self.rng.sample(cases, min(quick, len(cases)))

    @contextlib.contextmanager
    def attempt(self, kind: str, description: str):
        """Counts what happens inside as one attempt of a kind, which holds unless it raises."""
        count = _COUNTS[kind]
        count[0] += 1
        try:
            yield
        except Exception as error:
            count[1] += 1
            self.failures.append(f"{kind}: {description}: {error}")


@pytest.fixture
def drill(request):
    found = Drill(request.config.getoption("--drills"), request.node.name)
    yield found
    if found.failures:
        pytest.fail(f"{len(found.failures)} attempts failed:\n" + "\n".join(found.failures), pytrace=False)


def pytest_terminal_summary(terminalreporter):
    if _COUNTS:
        terminalreporter.section("drills")
        terminalreporter.line(f"{'kind':<44} {'tried':>6} {'held':>6} {'failed':>6}")
        total = [sum(column) for column in zip(*_COUNTS.values(), strict=True)]
        for kind, (tried, failed) in [*sorted(_COUNTS.items()), ("all", total)]:
            terminalreporter.line(f"{kind:<44} {tried:>6} {tried - failed:>6} {failed:>6}")


@pytest.fixture(scope="session")
def finished(tiny_overrides, tmp_path_factory):
    """(overrides, run folder) of a tiny run that was trained, evaluated, and sampled. Copy it before you change it."""
    parent = tmp_path_factory.mktemp("drills")
    shutil.copytree(Path(tiny_overrides["training.output_dir"]) / "prepared", parent / "run")
    overrides = tiny_overrides | {
        "training.output_dir": str(parent),
        "training.run_name": "run",
        "lr_scheduler.decay_steps": "8",
        "checkpoint.keep_last": "2",
    }
    for words in (["train"], ["evaluate"], ["generate", "--every-domain", "--max-new-tokens", "4"]):
        run_verb([*words, *options(overrides)], parent / "log.txt").require_success()
    return overrides, parent / "run"


@pytest.fixture
def copy_of_run(finished, tmp_path):
    """copy_of_run() replaces tmp_path/runs/run by a new copy of the finished run; returns (overrides, run folder)."""
    overrides, source = finished

    def copy():
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        shutil.copytree(source, tmp_path / "runs" / "run")
        return overrides | {"training.output_dir": str(tmp_path / "runs")}, tmp_path / "runs" / "run"

    return copy
