"""A training of 600 steps: memory, descriptors, threads, and files do not grow."""

import os
import time

import psutil
from commands import COMMANDS, RUN
from contents import losses_of
from verbs import Verb, options

STEPS = 600
MEGABYTE = 1 << 20


def test_a_long_training_does_not_leak(drill, sandboxes, tmp_path):
    """Time: 60 s."""
    changes = {"checkpoint.save_steps": "20", "training.steps": str(STEPS), "lr_scheduler.decay_steps": str(STEPS)}
    for _ in drill.attempts(quick=0, full=1):
        with drill.attempt("soak", f"{STEPS} steps"):
            box = sandboxes.new(tmp_path, cleared_of=COMMANDS["train"])
            verb = Verb(["train", *options(RUN | changes)], tmp_path / "log.txt", cwd=box)
            process = psutil.Process(verb.pid)
            samples = {}
            while verb.is_running():
                step = len(losses_of(box / "run"))
                try:
                    values = process.memory_info().rss, process.num_fds(), process.num_threads(), num_files(box)
                except psutil.NoSuchProcess:
                    break
                samples[step] = values
                time.sleep(0.5)
            verb.wait(600).require_success()

            assert len(losses_of(box / "run")) == STEPS
            memory, descriptors, threads, files = zip(
                *(values for step, values in samples.items() if step >= STEPS // 3), strict=True
            )
            assert memory[-1] - memory[0] < 30 * MEGABYTE, [value // MEGABYTE for value in memory]
            assert max(descriptors) - descriptors[0] <= 8, descriptors
            assert max(threads) - threads[0] <= 4, threads
            assert max(files[len(files) // 2 :]) <= max(files[: len(files) // 2]), files


def num_files(folder):
    """Counts files and folders, without the unfinished ones of a checkpoint that is being saved or removed."""
    number = 0
    for _, folders, files in os.walk(folder):  # some vanish meanwhile
        folders[:] = [name for name in folders if not name.endswith((".writing", ".deleting"))]
        number += len(folders) + len(files)
    return number
