"""Two ranks that train under msrun: one is killed or stopped, signals arrive, and the shared memory is full."""

import signal
import time

import pytest
from commands import COMMANDS, RUN
from contents import losses_of
from scripts import ENDLESS, RESUME_HINT, Script, full_shm_prefix

from mindpangu.signals import STOP_SIGNALS

STEPS = 24
SETTINGS = {"training.steps": str(STEPS), "checkpoint.save_steps": "5", "lr_scheduler.decay_steps": str(STEPS)}
TIMEOUT = 45  # seconds of parallelism.timeout; more than it takes to compile a step


@pytest.fixture
def new_box(sandboxes, tmp_path):
    """new_box() returns a sandbox whose run has not been trained."""
    return lambda: sandboxes.new(tmp_path, cleared_of=COMMANDS["train"])


@pytest.fixture(scope="module")
def uninterrupted(sandboxes, tmp_path_factory):
    """uninterrupted() returns the losses of a training that nothing interrupts."""
    found = []

    def losses():
        if not found:
            box = sandboxes.new(tmp_path_factory.mktemp("uninterrupted"), cleared_of=COMMANDS["train"])
            with Script(box, SETTINGS, ranks=2) as script:
                script.wait_for_training(STEPS)
            found.append(losses_of(script.run))
        return found[0]

    return losses


@pytest.mark.parametrize("victim", [0, 1])
def test_after_a_killed_rank_the_script_names_it_and_restarts_the_training(drill, new_box, uninterrupted, victim):
    """The training continues from its last checkpoint, with the losses of an uninterrupted one.

    Time of an attempt: 50 s.
    """
    for _ in drill.attempts(quick=0, full=1):
        with drill.attempt("kill: ranks", f"rank {victim}"):
            expected = uninterrupted()
            with Script(new_box(), SETTINGS | {"training.restarts": "1"}, ranks=2) as script:
                script.wait_for_steps(8)
                script.rank(victim).kill()
                script.wait_for_training(STEPS)

            other = (script.run / "msrun_log" / f"worker_{1 - victim}.log").read_text()  # kept beside the restart's
            assert f"mindpangu: error: rank {1 - victim}: rank {victim} on " in other
            assert "is dead; its last step was " in other
            assert "is dead; its last step was " in script.output
            assert "continuing from the last checkpoint, restart 1 of 1" in script.output
            assert (script.run / "msrun_log_restart_1" / f"worker_{victim}.log").exists()
            assert losses_of(script.run) == expected


@pytest.mark.parametrize("to", ["script", "group", "rank"])
def test_a_signal_stops_all_ranks_after_their_step_and_nothing_is_restarted(drill, new_box, to):
    """Time of an attempt: 30 s."""
    for number in drill.attempts(quick=0, full=len(STOP_SIGNALS)):
        signum = STOP_SIGNALS[number]
        rank = drill.rng.randrange(2)
        with drill.attempt(f"signal to the {to}, two ranks", f"{signum.name}, rank {rank}"):
            with Script(new_box(), ENDLESS | {"training.restarts": "1"}, ranks=2) as script:
                script.wait_for_steps(8)
                script.send(signum, to, rank)
                code = script.wait(120)
                script.require_no_processes()

            assert code == 128 + signum, script.output
            assert script.newest_checkpoint == len(losses_of(script.run)) >= 8
            assert RESUME_HINT in script.output
            assert "Traceback" not in script.output
            assert "continuing from the last checkpoint" not in script.output


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named_after_the_timeout(drill, new_box, stopped):
    """Time of an attempt: 80 s."""
    for _ in drill.attempts(quick=0, full=1):
        with drill.attempt("SIGSTOP of a rank", f"rank {stopped}"):
            with Script(new_box(), ENDLESS | {"parallelism.timeout": str(TIMEOUT)}, ranks=2) as script:
                script.wait_for_steps(8)
                script.rank(stopped).send_signal(signal.SIGSTOP)
                code = script.wait(TIMEOUT + 120)
                script.require_no_processes()

            assert code not in (0, *(128 + signum for signum in STOP_SIGNALS)), script.output
            assert f"rank {stopped} on " in script.output
            assert "is stopped (SIGSTOP); kill -CONT continues it" in script.output
            assert "Traceback" not in script.output


def test_a_rank_that_is_stopped_for_a_while_continues(drill, new_box, uninterrupted):
    """Time of an attempt: 35 s."""
    for number in drill.attempts(quick=0, full=1):
        with drill.attempt("SIGSTOP of a rank", f"rank {number}, for five seconds"):
            expected = uninterrupted()
            with Script(new_box(), SETTINGS, ranks=2) as script:
                script.wait_for_steps(8)
                rank = script.rank(number)
                rank.send_signal(signal.SIGSTOP)
                time.sleep(5)
                rank.send_signal(signal.SIGCONT)
                script.wait_for_training(STEPS)

            assert losses_of(script.run) == expected


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_training_does_not_need_shared_memory(drill, sandboxes, new_box, uninterrupted, ranks):
    """Time of an attempt: 30 s."""
    for _ in drill.attempts(quick=0, full=1):
        prefix = full_shm_prefix()
        with drill.attempt("full /dev/shm", f"{ranks} ranks"):
            expected = sandboxes.undisturbed("train").result if ranks == 1 else uninterrupted()
            with Script(new_box(), {} if ranks == 1 else SETTINGS, ranks, prefix) as script:
                script.wait_for_training(STEPS if ranks > 1 else int(RUN["training.steps"]))

            assert losses_of(script.run) == expected
