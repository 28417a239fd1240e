"""A training of 600 steps: memory, descriptors, threads, and files do not grow."""

import time

import psutil
import pytest
from contents import losses_of
from verbs import Verb, options

pytestmark = pytest.mark.slow

STEPS = 600
MEGABYTE = 1 << 20


def test_a_long_training_holds_on_to_nothing(drill, copy_of_run, tmp_path):
    overrides, folder = copy_of_run()
    steps = STEPS if len(drill.attempts(quick=1, full=2)) == 2 else 60
    changes = {
        "checkpoint.save_steps": str(steps // 12),
        "training.steps": str(steps),
        "lr_scheduler.decay_steps": str(steps),
    }
    for name in ("checkpoint", "metrics.jsonl"):
        (folder / name).rename(folder.parent / name)
    verb = Verb(["train", *options(overrides | changes)], tmp_path / "log.txt")
    samples = {}
    with drill.attempt("soak", f"{steps} steps"):
        while verb.is_running():
            done = len(losses_of(folder)) if (folder / "metrics.jsonl").exists() else 0
            process = psutil.Process(verb.pid)
            samples[done] = (process.memory_info().rss, process.num_fds(), process.num_threads(), _num_files(folder))
            time.sleep(0.5)
        verb.wait().require_success()
        middle = [values for step, values in samples.items() if step >= steps // 3]
        memory, descriptors, threads, files = zip(*middle, strict=True)
        assert memory[-1] - memory[0] < 30 * MEGABYTE, [value // MEGABYTE for value in memory]
        assert max(descriptors) - descriptors[0] <= 8, descriptors
        assert max(threads) - threads[0] <= 4, threads
        assert files[-1] <= max(files[: len(files) // 2]), files


def _num_files(folder):
    return sum(1 for _ in folder.rglob("*"))
