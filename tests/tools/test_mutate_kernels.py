"""tools/mutate_kernels.py: there are enough mutants, and none of them survives."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "mutate_kernels.py"


def mutate(*arguments):
    return subprocess.run([sys.executable, str(TOOL), *arguments], capture_output=True, text=True)


def test_there_are_enough_mutants_of_every_kind():
    names = mutate("--list").stdout.splitlines()

    assert len(names) == len(set(names)) > 60
    for kind in ("without Order<", "without PipeBarrier", "without sync_()", "EnQue", "FreeTensor", "SetFlag"):
        assert any(kind in name for name in names), kind


@pytest.mark.slow
def test_some_mutants_are_rejected_by_the_rule_that_they_break():
    done = mutate("--only", "SetFlag", "short output", "gather instead of scatter")

    assert done.returncode == 0, done.stdout + done.stderr
    rules = {line.split()[-1] for line in done.stdout.splitlines()[:-1]}
    assert rules == {"event", "gm-bounds", "result"}


@pytest.mark.slow
def test_every_mutant_is_found():
    done = mutate()
    assert done.returncode == 0, done.stdout + done.stderr
