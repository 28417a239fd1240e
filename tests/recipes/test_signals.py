"""run_910.sh passes signals on to the running stage, waits for it, and ends with 128 + the number of the signal.

The stages are stand-ins. tests/drills/test_signals.py sends signals to real ones.
"""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stand_ins import MSRUN, PROJECT, without_ascend

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
pytestmark = without_ascend


@pytest.mark.parametrize("verb", ["data", "train"])
@pytest.mark.parametrize("to", ["script", "group", "stage"])
@pytest.mark.parametrize("signum", SIGNALS)
def test_the_stage_gets_a_signal_once_and_the_script_waits_for_it(machine, signum, to, verb):
    job = machine.start_job(SLOW_VERB=verb)

    if to == "script":
        job.send_signal(signum)
    elif to == "group":
        os.killpg(job.pid, signum)
    else:
        os.kill(int(machine.log_lines("started")[0]), signum)

    assert job.wait(20) == 128 + signum
    assert machine.log_lines("signals") == [signum.name]
    assert machine.log_lines("saved")
    assert machine.log_lines("verbs")[-1].split()[0] == verb  # it was not restarted, and nothing started after it
    assert to == "stage" or not machine.orphans()


@pytest.mark.parametrize("to", ["script", "group"])
def test_under_nohup_a_lost_connection_changes_nothing(machine, to):
    job = machine.start_job(SLOW_VERB="train", SLOW_SECONDS="2", ignored=signal.SIGHUP)

    os.kill(job.pid, signal.SIGHUP) if to == "script" else os.killpg(job.pid, signal.SIGHUP)

    assert job.wait(20) == 0
    assert machine.log_lines("signals") == []
    assert machine.log_lines("verbs")[-1].startswith("generate ")


@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_is_passed_on_too(machine, second):
    job = machine.start_job(SLOW_VERB="train", SAVING_SECONDS="30")

    job.terminate()
    wait_for(lambda: machine.log_lines("signals"))
    job.send_signal(second)

    assert job.wait(4) == 128 + second
    assert machine.log_lines("signals") == ["SIGTERM", second.name]
    assert not machine.log_lines("saved")
    assert not machine.orphans()


def test_a_lost_terminal_counts_as_one_request(machine):
    """The shell in it and the kernel send a SIGHUP each; after a second request, saving would have five seconds."""
    job = machine.start_job(SLOW_VERB="train", SAVING_SECONDS="2")

    job.send_signal(signal.SIGHUP)
    wait_for(lambda: machine.log_lines("signals"))
    job.send_signal(signal.SIGHUP)

    assert job.wait(20) == 129
    assert machine.log_lines("signals") == ["SIGHUP"]
    assert machine.log_lines("saved")


@pytest.mark.slow
def test_a_stage_that_ignores_two_signals_is_killed(machine):
    job = machine.start_job(SLOW_VERB="train", STUBBORN="1")

    for count in (1, 2):
        job.terminate()
        wait_for(lambda count=count: len(machine.log_lines("signals")) == count)

    assert job.wait(20) == 143
    assert not machine.orphans()


@pytest.mark.parametrize("signum", SIGNALS)
def test_signals_reach_the_ranks_but_not_msrun_which_would_kill_them(machine, signum, tmp_path):
    machine.add_program("msrun", MSRUN)
    folders = {"RUN_FOLDER": str(tmp_path), "MSRUN_STEPS": str(tmp_path), "RESTARTS": "2"}
    job = machine.start_job(CPU_PROCESSES="2", SLOW_RANK=sys.executable, **folders)

    os.killpg(job.pid, signum)

    assert job.wait(20) == 128 + signum
    assert machine.log_lines("signals") == [signum.name]
    assert machine.log_lines("saved")
    assert len(machine.log_lines("msruns")) == 1
    assert machine.log_lines("started")[0] not in machine.orphans()


@pytest.mark.parametrize("signum", SIGNALS)
def test_before_the_ranks_have_started_msrun_gets_the_signal(machine, signum):
    machine.add_program("msrun", MSRUN)
    job = machine.start_job(CPU_PROCESSES="2", MSRUN_STARTS_SLOWLY="1", RESTARTS="2")

    job.send_signal(signum)

    assert job.wait(20) == 128 + signum
    assert len(machine.log_lines("msruns")) == 1
    assert not machine.orphans()


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_stage_after_the_ranks_gets_the_signal_itself(machine, signum):
    machine.add_program("msrun", MSRUN)
    job = machine.start_job(CPU_PROCESSES="2", SLOW_VERB="evaluate")

    job.send_signal(signum)

    assert job.wait(20) == 128 + signum
    assert machine.log_lines("signals") == [signum.name]
    assert machine.log_lines("saved")
    assert "unbound" not in (machine.logs / "output").read_text()


def test_a_signal_during_the_installation_ends_pip_as_well(clone):
    process = clone.start(PIP_SECONDS="30")
    wait_for(lambda: clone.calls("pip"))

    process.terminate()

    output = process.communicate(timeout=10)[0]
    assert process.returncode == 143, output
    assert (clone.project / ".venv/installing").exists()
    assert clone.prepare()[0] == 0  # no pip holds the lock


@pytest.mark.parametrize("event", ["Ctrl-C", "hangup"])
def test_a_terminal_signals_the_stage_once(machine, event):
    command = ["bash", str(PROJECT / "recipes/run_910.sh")]
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.execve("/bin/bash", command, machine.environment(SLOW_VERB="train"))
    wait_for(lambda: machine.log_lines("started"))

    if event == "Ctrl-C":
        os.write(terminal, b"\x03")
    else:
        os.close(terminal)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == (130 if event == "Ctrl-C" else 129)
    assert machine.log_lines("signals") == ["SIGINT" if event == "Ctrl-C" else "SIGHUP"]
    assert machine.log_lines("saved")
    assert not machine.orphans()


def test_ctrl_z_stops_the_stage_and_fg_continues_it(machine):
    job = machine.start_job(SLOW_VERB="train")
    stage = machine.log_lines("started")[0]

    job.send_signal(signal.SIGTSTP)
    wait_for(lambda: state_of(stage) == "T" and state_of(job.pid) == "T")
    job.send_signal(signal.SIGCONT)
    wait_for(lambda: state_of(stage) != "T")
    job.terminate()

    assert job.wait(20) == 143
    assert machine.log_lines("signals") == ["SIGTERM"]


def test_a_stopped_stage_does_not_make_the_script_spin(machine):
    job = machine.start_job(SLOW_VERB="train")
    stage = int(machine.log_lines("started")[0])

    os.kill(stage, signal.SIGSTOP)
    before = processor_time(job.pid)
    time.sleep(1)
    used = processor_time(job.pid) - before
    os.kill(stage, signal.SIGCONT)
    job.terminate()

    assert job.wait(20) == 143
    assert used < 0.2


def test_the_ladder_of_tiny_models_gets_signals_directly(machine):
    """It replaces the script that starts it."""
    machine.add_program("ladder", f"#!/bin/sh\nexec {sys.executable} $SLOW_PROGRAM\n")
    script = (PROJECT / "recipes/tiny_ladder.sh").read_text().replace('exec "$PYTHON"', f"exec {machine.bin}/ladder")
    (machine.folder / "recipes").mkdir()
    (machine.folder / "recipes/tiny_ladder.sh").write_text(script)
    (machine.folder / "recipes/environment.sh").write_text((PROJECT / "recipes/environment.sh").read_text())
    command = ["bash", str(machine.folder / "recipes/tiny_ladder.sh")]
    job = subprocess.Popen(command, env=machine.environment())
    machine.wait_for_stage(job)

    job.terminate()

    assert job.wait(20) == 143
    assert machine.log_lines("signals") == ["SIGTERM"]


def wait_for(condition, seconds=20.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)


def stat_of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def state_of(pid):
    return stat_of(pid)[0]


def processor_time(pid):
    """Returns the seconds of processor time that a process has used."""
    return sum(map(int, stat_of(pid)[11:13])) / os.sysconf("SC_CLK_TCK")
