"""The surroundings of a training misbehave: the clock jumps, memory or open files are limited."""

import resource

from commands import COMMANDS
from contents import losses_of
from verbs import run_verb

GIGABYTE = 1 << 30
TRAIN = COMMANDS["train"]
LIMITS = [
    *(("address space", {resource.RLIMIT_AS: (size * GIGABYTE // 4,) * 2}) for size in range(8, 20)),
    *(("open files", {resource.RLIMIT_NOFILE: (count,) * 2}) for count in (16, 20, 24, 28, 32, 36, 40, 48)),
]


def test_a_jumping_clock_does_not_change_a_training(drill, sandboxes, tmp_path):
    """Time of an attempt: 8 s."""
    for number in drill.attempts(quick=0, full=4):
        with drill.attempt("clock jumps", f"{number}"):
            box = sandboxes.new(tmp_path, cleared_of=TRAIN)

            run_verb(TRAIN.words, tmp_path / "log.txt", cwd=box, jumping_clock=True).require_success()

            assert losses_of(box / "run") == sandboxes.undisturbed("train").result


def test_a_limit_of_the_machine_is_named_in_one_message(drill, sandboxes, tmp_path):
    """Time of an attempt: 4 s."""
    for limited, limits in drill.some_of(LIMITS, quick=0):
        with drill.attempt(f"limit: {limited}", f"{limits}"):
            box = sandboxes.new(tmp_path, cleared_of=TRAIN)

            outcome = run_verb(TRAIN.words, tmp_path / "log.txt", cwd=box, limits=limits)

            if outcome.code != 0:
                outcome.require_one_message()
