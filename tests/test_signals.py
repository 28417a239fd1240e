"""A signal stops a program in one line with exit code 128 + its number; a second one, or one in a long call, too."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mindpangu.signals import STOP_SIGNALS, StopOnSignal, StoppedBySignal, exit_code

PROJECT = Path(__file__).parents[1]

# the command line with a verb that does what the first argument says
VERB = """
import atexit, ctypes, os, signal, sys, time
from mindpangu.__main__ import main
does_afterwards = sys.argv.pop()
does = sys.argv.pop()
sys.argv.append("config")
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
from mindpangu.cli import config

def run(options, settings):
    print("started", flush=True)
    exec(does)
    print("ended", flush=True)

config.run = run
code = main()
print("returned", flush=True)
exec(does_afterwards)
sys.exit(code)
"""
WAITS = "time.sleep(30)"
WAITS_IN_PYTHON = "for _ in range(300): time.sleep(0.1)"  # a signal just before a long sleep would be handled after it
WAITS_IN_A_LIBRARY = "ctypes.CDLL(None).sleep(30)"
LIBRARY_HANDLER = """
libc = ctypes.CDLL(None)
libc.signal(int(signal.SIGINT), ctypes.cast(libc.abort, ctypes.c_void_p))  # like MindSpore's, while it compiles
"""
HIDES_THE_SIGNAL = """
try:
    time.sleep(30)
except KeyboardInterrupt:
    raise ValueError("from a library")
"""
TIDIES_SLOWLY = """
try:
    print("working", flush=True)
    time.sleep(30)
finally:
    print("tidying", flush=True)
    time.sleep(30)
"""


@pytest.fixture
def start():
    """start(does, ignored, afterwards) starts the command line with a verb, and returns when the verb has begun."""
    started = []

    def start_verb(does, ignored=(), afterwards=""):
        def set_signals():
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            for signum in ignored:
                signal.signal(signum, signal.SIG_IGN)

        process = subprocess.Popen(
            [sys.executable, "-c", VERB, does, afterwards],
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=set_signals,
        )
        started.append(process)
        assert process.stdout.readline() == "started\n"
        return process

    yield start_verb
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("does", [WAITS, WAITS_IN_A_LIBRARY, LIBRARY_HANDLER + WAITS, HIDES_THE_SIGNAL])
@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_verb_ends_in_one_line_with_the_exit_code_of_the_signal(start, signum, does):
    process = start(does)

    process.send_signal(signum)

    _, errors = process.communicate(timeout=10)
    assert process.returncode == 128 + signum == exit_code(signum)
    assert errors == f"mindpangu: stopped by {signum.name}\n"


@pytest.mark.parametrize("signum", STOP_SIGNALS)
@pytest.mark.parametrize("library", ["", LIBRARY_HANDLER])
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(start, signum, library):
    process = start(f"{library}\ntime.sleep(1)", ignored=[signum])

    process.send_signal(signum)

    printed, errors = process.communicate(timeout=10)
    assert process.returncode == 0
    assert (printed, errors) == ("ended\nreturned\n", "")


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_after_the_verb_has_the_same_exit_code(start, signum):
    process = start("pass", afterwards=WAITS_IN_PYTHON)
    assert [process.stdout.readline() for _ in range(2)] == ["ended\n", "returned\n"]

    process.send_signal(signum)

    _, errors = process.communicate(timeout=10)
    assert process.returncode == 128 + signum
    assert errors == ""


def test_a_second_signal_ends_a_verb_that_is_still_tidying_up(start):
    process = start(TIDIES_SLOWLY)
    assert process.stdout.readline() == "working\n"
    process.terminate()
    assert process.stdout.readline() == "tidying\n"
    time.sleep(0.7)

    process.terminate()

    assert process.wait(5) == -signal.SIGTERM


def test_a_signal_that_arrives_twice_is_one_request():
    with StopOnSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == signal.SIGTERM

        time.sleep(0.6)
        with pytest.raises(StoppedBySignal) as stopped:
            os.kill(os.getpid(), signal.SIGHUP)

    assert stopped.value.signum == signal.SIGHUP


def test_the_previous_handlers_are_restored_afterwards():
    before = [signal.getsignal(signum) for signum in STOP_SIGNALS]

    with StopOnSignal(), StopOnSignal(patience=0):
        assert [signal.getsignal(signum) for signum in STOP_SIGNALS] != before

    assert [signal.getsignal(signum) for signum in STOP_SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_repeated_hangups_of_a_lost_terminal_count_as_one_request():
    with StopOnSignal() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.6)
        assert stop.requested == signal.SIGHUP

        with pytest.raises(StoppedBySignal):
            os.kill(os.getpid(), signal.SIGTERM)
