"""Two processes write the same thing at the same time: one wins, the other gets one message, and no source changes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ARENA = Path(__file__).with_name("race_arena.py")
VERBS = (
    "extract",
    "extract --export",
    "experts add",
    "experts remove",
    "tiny tokenizer",
    "tokenizer extend",
    "tokenizer train",
)
FUNCTIONS = ("file", "several files", "linked folder")


def race(folder, kind, races, seed=0):
    """Lets `races` pairs of processes write; returns the counts."""
    done = subprocess.run(
        [sys.executable, str(ARENA), kind, str(races), str(seed)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ARENA.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    print(f"{kind}: {counts}")
    assert counts["races"] == races
    assert counts["failed"] == 0, done.stderr
    return counts


@pytest.mark.parametrize("kind", ["extract", *FUNCTIONS])
def test_two_writers_of_the_same(tmp_path, kind):
    race(tmp_path, kind, 4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*VERBS, *FUNCTIONS])
def test_many_pairs_of_writers_of_the_same(tmp_path, kind):
    """More than 200 races in all."""
    counts = race(tmp_path, kind, 24, seed=1)

    assert counts["killed"] >= 4
