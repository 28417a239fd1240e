"""Drills: kills, damage, races, signals, and full disks, with counts of attempts that were tried, held, and failed.

The quick tests make a few attempts of each kind; `bash tests/run.sh --drills` makes all of them. tests/conftest.py
prints the counts.
"""

import contextlib
import os
import random
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the helper modules of the drills

from sandboxes import Sandboxes


@dataclass
class Count:
    """Attempts of one kind.

    Attributes:
        tried, failed: number of attempts, and how many of them failed.
        slowest: seconds that the slowest attempt took, and its description.
    """

    tried: int = 0
    failed: int = 0
    slowest: tuple[float, str] = (0.0, "")


@dataclass
class Drill:
    """Counts attempts. A failed attempt does not end the test; all failures are reported at its end.

    Attributes:
        makes_all: True with --drills, False with the quick tests.
        rng: random numbers, the same in every session but different in each test.
    """

    makes_all: bool
    rng: random.Random
    failures: list[str] = field(default_factory=list)
    counts: dict[str, Count] = field(default_factory=lambda: defaultdict(Count))

    def attempts(self, quick: int, full: int) -> range:
        """Returns the numbers of the attempts to make: `quick` with the quick tests, `full` with --drills."""
        number = full if self.makes_all else quick
        if not number:
            pytest.skip("only with --drills")
        return range(number)

    def some_of(self, cases: list, quick: int, full: int | None = None) -> list:
        """Returns a random choice: `quick` cases with the quick tests; with --drills, `full` cases or, if None, all."""
        full = len(cases) if full is None else min(full, len(cases))
        return self.rng.sample(cases, len(self.attempts(min(quick, len(cases)), full)))

    @contextlib.contextmanager
    def attempt(self, kind: str, description: str):
        """Counts the block, including its setup, as one attempt of a kind. It holds unless the block raises."""
        count = self.counts[kind]
        count.tried += 1
        began = time.monotonic()
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:
            count.failed += 1
            reason = f"{type(error).__name__}: {error}".removeprefix("AssertionError: ")
            self.failures.append(f"{kind}: {description}: {reason}")
        finally:
            count.slowest = max(count.slowest, (time.monotonic() - began, description))


@pytest.fixture
def drill(request):
    found = Drill(request.config.getoption("--drills"), random.Random(request.node.name))
    yield found
    for kind, count in found.counts.items():
        request.node.user_properties.append(("drill", [kind, count.tried, count.failed, *count.slowest]))
    if found.failures:
        pytest.fail(f"{len(found.failures)} attempts failed:\n" + "\n".join(found.failures), pytrace=False)


@pytest.fixture(scope="session")
def sandboxes(request, tiny_corpus, tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return Sandboxes(shared / "drills", tiny_corpus, request.config.getoption("--drills"))
