"""Two processes write the same output: one wins, the other waits or says why not, and no source changes.

In every other race, the first writer is killed at a random moment.
"""

import signal
import time
from functools import partial

import pytest
from commands import COMMANDS
from contents import content_of, leftovers
from verbs import Verb, run_verb
from writers import PIECES, link, write_file, write_several_files

FUNCTIONS = {"a file": write_file, "several files": write_several_files, "a linked folder": link}
START_DELAY = 0.1  # seconds in which both processes are started, before the first one begins


def race(works, tmp_path, box, delay, kill_after):
    """Starts two writers, the second `delay` seconds after the first; returns how they ended.

    Args:
        kill_after: seconds after which the first is killed, or None.
    """
    begin = time.monotonic() + START_DELAY
    writers = [
        Verb(work, tmp_path / f"log_{who}.txt", cwd=box, begin=begin + who * delay) for who, work in enumerate(works)
    ]
    if kill_after is not None:
        time.sleep(max(0.0, begin + kill_after - time.monotonic()))
        writers[0].kill()
    return [writer.wait() for writer in writers]


def require_messages(outcomes, *any_of):
    """Asserts that each writer succeeded, was killed, or gave one message; returns how many succeeded."""
    for outcome in outcomes:
        if outcome.code not in (0, -signal.SIGKILL):
            outcome.require_one_message(*any_of)
    return sum(outcome.code == 0 for outcome in outcomes)


def moments(drill, number, seconds):
    """Returns `delay` and `kill_after` for a race; most writers begin a few milliseconds apart."""
    delay = 0.5 * seconds * drill.rng.random() ** 4
    return delay, drill.rng.uniform(0.0, 1.5 * seconds) if number % 2 else None


@pytest.mark.parametrize("name", COMMANDS)
def test_two_verbs_that_write_the_same_output(drill, sandboxes, tmp_path, name):
    """A third process, started later, refuses, skips the work, or has nothing left to do.

    Time of a race: 1.2 s; 20 s for a verb that compiles.
    """
    command = COMMANDS[name]
    for number in drill.attempts(quick=int(command.is_quick), full=2 if command.compiles else 10):
        with drill.attempt(f"two writers: {command.group}", f"{name}, {number}"):
            undisturbed = sandboxes.undisturbed(name)
            box = sandboxes.new(tmp_path, cleared_of=command)
            delay, kill_after = moments(drill, number, undisturbed.seconds)

            outcomes = race([command.words] * 2, tmp_path, box, delay, kill_after)

            won = require_messages(outcomes, command.out, "run is being trained", "already has", "not empty")
            if all(outcome.code >= 0 for outcome in outcomes):
                assert won == (2 if command.again == "skips" else 1), [outcome.output for outcome in outcomes]
            command.require_nothing_half_written(box, undisturbed.whole)
            if won and command.again == "refuses":
                run_verb(command.words, tmp_path / "log.txt", cwd=box).require_one_message()
            else:
                command.finish(box, tmp_path / "log.txt", undisturbed.whole).require_success()
            assert command.result(box / command.out) == undisturbed.result
            assert command.sources(box) == undisturbed.sources
            assert not leftovers(box / command.out, locks=kill_after is None)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_two_calls_of_a_writing_function(drill, sandboxes, tmp_path, name):
    """All code writes with these functions.

    Time of a race: 0.5 s.
    """
    write = FUNCTIONS[name]
    for number in drill.attempts(quick=2, full=10):
        with drill.attempt("two writers: functions", f"{name}, {number}"):
            box = sandboxes.new(tmp_path)
            source = content_of(box / "run")
            delay, kill_after = moments(drill, number, seconds=0.1)

            outcomes = race([partial(write, who) for who in (0, 1)], tmp_path, box, delay, kill_after)

            won = require_messages(outcomes)
            if all(outcome.code >= 0 for outcome in outcomes):
                assert won == (1 if write is link else 2), [outcome.output for outcome in outcomes]
            if not (write is link and (box / "out").exists()):
                run_verb(partial(write, 2), tmp_path / "log.txt", cwd=box).require_success()
            if write is link:
                assert list(content_of(box / "out").values()) == list(content_of(box / "run" / "data").values())
            else:
                whole = [bytes([who]) * PIECES for who in range(3)]
                assert all(path.read_bytes() in whole for path in (box / "out").iterdir())
            assert content_of(box / "run") == source
            assert not leftovers(box, locks=True)
