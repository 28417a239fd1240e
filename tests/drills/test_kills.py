"""Every verb is killed at random moments: it leaves nothing half-written, and a second start gives the same result."""

import time

import pytest
from commands import COMMANDS, READERS
from contents import content_of, leftovers, losses_of
from verbs import Verb, run_verb

TRAIN = COMMANDS["train"]


def kill_after(seconds, words, log, box, with_children=True):
    """Starts a verb, kills it `seconds` later, and waits until it is gone."""
    verb = Verb(words, log, cwd=box)
    time.sleep(seconds)
    verb.kill(with_children)
    return verb.wait()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_verb_leaves_nothing_half_written_and_can_be_started_again(drill, sandboxes, tmp_path, name):
    """Every other attempt also kills the verb's children; in the others, they must end by themselves.

    Time of an attempt: 1 s; 15 s for a verb that compiles.
    """
    command = COMMANDS[name]
    for number in drill.attempts(quick=int(command.is_quick), full=2 if command.compiles else 6):
        with drill.attempt(f"kill: {command.group}", f"{name}, {number}"):
            undisturbed = sandboxes.undisturbed(name)
            box = sandboxes.new(tmp_path, cleared_of=command)
            seconds = drill.rng.uniform(0.0, undisturbed.seconds)

            kill_after(seconds, command.words, tmp_path / "log.txt", box, with_children=number % 2 == 0)

            command.require_nothing_half_written(box, undisturbed.whole)
            command.finish(box, tmp_path / "log.txt", undisturbed.whole).require_success()
            assert command.result(box / command.out) == undisturbed.result
            assert command.sources(box) == undisturbed.sources
            assert not leftovers(box / command.out)


@pytest.mark.parametrize("name", READERS)
def test_a_verb_that_only_prints_changes_nothing(drill, sandboxes, tmp_path, name):
    """Time of an attempt: 0.5 s."""
    for number in drill.attempts(quick=0, full=4):
        with drill.attempt("kill: verbs that print", f"{name}, {number}"):
            box = sandboxes.new(tmp_path)
            (box / "run" / "routing.png").unlink()  # the only thing that one of them writes
            before = content_of(box)

            kill_after(drill.rng.uniform(0.0, 0.4), READERS[name], tmp_path / "log.txt", box)

            after = content_of(box)
            after.pop("box/run/routing.png", None)
            assert after == before
            run_verb(READERS[name], tmp_path / "log.txt", cwd=box).require_success()


def test_a_training_that_is_killed_again_and_again_has_the_same_losses(drill, sandboxes, tmp_path):
    """The training saves every step, so that kills hit checkpoints while they are being written and removed.

    Time of an attempt: 20 s.
    """
    words = (*TRAIN.words, "--checkpoint.save_steps", "1")
    for number in drill.attempts(quick=0, full=10):
        with drill.attempt("kill: training, three times", f"{number}"):
            undisturbed = sandboxes.undisturbed("train")
            box = sandboxes.new(tmp_path, cleared_of=TRAIN)

            for resume in ([], ["--resume"], ["--resume"]):
                seconds = undisturbed.seconds * drill.rng.uniform(0.3, 1.0)
                kill_after(seconds, [*words, *resume], tmp_path / "log.txt", box)
            run_verb([*words, "--resume"], tmp_path / "log.txt", cwd=box).require_success()

            assert losses_of(box / "run") == undisturbed.result
            assert not leftovers(box / "run" / "checkpoint")
