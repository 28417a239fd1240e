"""A signal lets a training finish its step and save it; a lost terminal or a closed pipe costs nothing."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ENDLESS = {"training.steps": "5000", "checkpoint.save_steps": "5000", "monitor.log_steps": "1"}


def command(overrides, *options):
    words = [word for key, value in overrides.items() for word in (f"--{key}", value)]
    return [sys.executable, "-m", "mindpangu", "train", *options, *words]


def start(overrides, *options, ignored=()):
    def set_signals():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        for signum in ignored:
            signal.signal(signum, signal.SIG_IGN)

    return subprocess.Popen(
        command(overrides, *options),
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=set_signals,
    )


def steps_of(folder):
    path = folder / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_steps(process, folder, steps):
    until = time.monotonic() + 120
    while len(steps_of(folder)) < steps:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.05)


def newest_checkpoint(folder):
    return int((folder / "latest_checkpointed_iteration.txt").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("signum", SIGNALS)
def test_a_training_saves_its_last_step_and_can_be_resumed(tiny_run, signum):
    overrides, folder = tiny_run
    process = start(overrides | ENDLESS)
    wait_for_steps(process, folder, 3)

    process.send_signal(signum)

    printed, errors = process.communicate(timeout=120)
    last = max(steps_of(folder))
    assert process.returncode == 128 + signum
    assert f"train: stopped by {signum.name} after step {last}; run the same command with --resume" in printed
    assert errors == ""
    assert newest_checkpoint(folder) == last

    resumed = start(overrides | ENDLESS, "--resume")
    wait_for_steps(resumed, folder, last + 1)
    resumed.send_signal(signum)
    printed, _ = resumed.communicate(timeout=120)
    assert f"after step {last}" in printed
    assert steps_of(folder) == list(range(1, newest_checkpoint(folder) + 1))


@pytest.mark.slow
def test_under_nohup_a_training_goes_on_after_a_hangup(tiny_run):
    overrides, folder = tiny_run
    process = start(overrides | {"training.steps": "40"}, ignored=[signal.SIGHUP])
    wait_for_steps(process, folder, 1)

    process.send_signal(signal.SIGHUP)

    assert process.wait(120) == 0
    assert newest_checkpoint(folder) == 40


@pytest.mark.slow
def test_a_training_whose_terminal_is_lost_is_saved(tiny_run):
    overrides, folder = tiny_run
    words = command(overrides | ENDLESS)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(words[0], words, os.environ | {"PYTHONPATH": str(PROJECT)})
    until = time.monotonic() + 120
    while len(steps_of(folder)) < 3:
        os.read(terminal, 65536)
        assert time.monotonic() < until

    os.close(terminal)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129
    assert newest_checkpoint(folder) == max(steps_of(folder))


@pytest.mark.slow
def test_a_training_whose_output_nobody_reads_goes_on(tiny_run):
    overrides, folder = tiny_run
    process = start(overrides | {"training.steps": "8", "monitor.log_steps": "1"})
    while not process.stdout.readline().startswith("step:["):
        assert process.poll() is None

    process.stdout.close()

    assert process.wait(120) == 0
    assert process.stderr.read() == ""
    assert newest_checkpoint(folder) == 8
    assert "step:[8/8]" in (folder / "log" / "rank_0" / "info.log").read_text()
