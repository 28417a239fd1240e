"""Signals to every verb at any moment, and to the script, its group, and its stage while it trains.

tests/recipes/test_signals.py sends them to stages that are stand-ins, and tests/train/test_signals.py sends them to
trainings; test_ranks.py sends them to several ranks.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import COMMANDS
from contents import leftovers, losses_of
from scripts import ENDLESS, PROJECT, RESUME_HINT, Script, processes_marked

from mindpangu.signals import STOP_SIGNALS


@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_ends_a_verb_at_any_moment(drill, sandboxes, tmp_path, name):
    """One line, the exit code of the signal, no process left, nothing half-written.

    Time of an attempt: 2 s; 6 s for a verb that compiles.
    """
    command = COMMANDS[name]
    for number in drill.attempts(quick=0, full=len(STOP_SIGNALS)):
        signum = STOP_SIGNALS[number]
        with drill.attempt("signal to a verb", f"{name}, {signum.name}"):
            undisturbed = sandboxes.undisturbed(name)
            box = sandboxes.new(tmp_path, cleared_of=command)
            process = start(command.words, box)
            wait_for_handler(process)
            time.sleep(drill.rng.uniform(0.0, undisturbed.seconds))

            process.send_signal(signum)
            _, errors = process.communicate(timeout=120)

            assert process.returncode in (0, 128 + signum), errors  # 0: it was faster than the signal
            assert "Traceback" not in errors, errors
            require_no_processes(box)
            command.require_nothing_half_written(box, undisturbed.whole)
            if not command.compiles:
                command.finish(box, tmp_path / "log.txt", undisturbed.whole).require_success()
                assert command.result(box / command.out) == undisturbed.result
                assert not leftovers(box / command.out)
            assert command.sources(box) == undisturbed.sources


def start(words, box):
    """Starts a verb as a shell would, in a session of its own, with the signal handlers of a foreground process."""
    return subprocess.Popen(
        [sys.executable, "-m", "mindpangu", *words],
        cwd=box,
        env=os.environ | {"PYTHONPATH": str(PROJECT), "MINDPANGU_DRILL": str(box)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_handler(process):
    """Waits until a verb has installed its handlers."""
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        if caught & 1 << (signal.SIGTERM - 1):
            return
        time.sleep(0.01)
    raise AssertionError(process.communicate())


def require_no_processes(box):
    """Asserts that no process of a verb still runs; those that are about to end get some seconds."""
    until = time.monotonic() + 20  # a trial saves a checkpoint first
    while (found := processes_marked(f"MINDPANGU_DRILL={box}")) and time.monotonic() < until:
        time.sleep(0.05)
    assert not found, found


@pytest.mark.parametrize("to", ["script", "group", "stage"])
def test_a_signal_stops_a_training_after_its_step_and_the_script_waits(drill, sandboxes, tmp_path, to):
    """Time of an attempt: 15 s."""
    for number in drill.attempts(quick=0, full=len(STOP_SIGNALS)):
        signum = STOP_SIGNALS[number]
        with drill.attempt(f"signal to the {to}", signum.name):
            box = sandboxes.new(tmp_path, cleared_of=COMMANDS["train"])
            with Script(box, ENDLESS) as script:
                script.wait_for_steps(3)
                script.send(signum, to)
                code = script.wait(120)
                saved = script.newest_checkpoint
                script.require_no_processes()

            assert code == 128 + signum, script.output
            assert saved == len(losses_of(script.run))
            assert script.output.rstrip().endswith(RESUME_HINT), script.output[-500:]
            assert "Traceback" not in script.output
