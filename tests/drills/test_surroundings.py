"""What surrounds a run misbehaves: the clock jumps, memory or threads are limited, the shared memory is full."""

import resource
import shutil

import pytest
from contents import losses_of
from verbs import options, run_verb

pytestmark = pytest.mark.slow

GIGABYTE = 1 << 30


def test_a_training_does_not_mind_a_clock_that_jumps(drill, copy_of_run, tmp_path):
    for number in drill.attempts(quick=1, full=4):
        overrides, folder = copy_of_run()
        expected = losses_of(folder)
        shutil.rmtree(folder / "checkpoint")
        (folder / "metrics.jsonl").unlink()
        with drill.attempt("clock jumps", f"{number}"):
            outcome = run_verb(["train", *options(overrides)], tmp_path / "log.txt", jumping_clock=True)
            outcome.require_success()
            assert losses_of(folder) == expected


def test_a_limit_of_the_machine_is_named_in_one_message(drill, copy_of_run, tmp_path):
    cases = [("address space", {resource.RLIMIT_AS: (size * GIGABYTE // 4,) * 2}) for size in range(8, 20)] + [
        ("open files", {resource.RLIMIT_NOFILE: (count,) * 2}) for count in (16, 24, 32, 40)
    ]
    for what, limits in drill.some_of(cases, quick=2):
        overrides, folder = copy_of_run()
        shutil.rmtree(folder / "checkpoint")
        (folder / "metrics.jsonl").unlink()
        with drill.attempt(f"limit: {what}", f"{limits}"):
            outcome = run_verb(["train", *options(overrides)], tmp_path / "log.txt", limits=limits)
            if outcome.code != 0:
                outcome.require_one_message()
