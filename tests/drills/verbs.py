"""Runs verbs of mindpangu in processes of their own, which a drill can kill, and which start within milliseconds.

A process is forked from a server that has imported MindSpore but never compiled anything.
"""

import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["mindspore", "mindpangu.cli.main", "mindpangu.train.run"])


def options(overrides: dict[str, str]) -> list[str]:
    """Returns the command-line words of configuration overrides."""
    return [word for key, value in overrides.items() for word in (f"--{key}", str(value))]


@dataclass(frozen=True)
class Outcome:
    """How a verb ended.

    Attributes:
        code: exit code; minus the signal's number if a signal ended it.
        output: everything that it printed.
        seconds: how long it took.
    """

    code: int
    output: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        """The lines of the output that are error messages."""
        return [line for line in self.output.splitlines() if line.startswith("mindpangu: error: ")]

    def require_success(self) -> None:
        assert self.code == 0, self.output[-2000:]

    def require_one_message(self, *any_of: str) -> None:
        """Asserts that the verb refused with one message and no traceback.

        Args:
            any_of: the message must contain one of these words; none: any message will do.
        """
        assert self.code == 1, f"exit code {self.code}: {self.output[-2000:]}"
        assert "Traceback" not in self.output, self.output[-3000:]
        assert len(self.errors) == 1, self.output[-2000:]
        assert not any_of or any(word in self.errors[0] for word in any_of), self.errors[0]


class Verb:
    """A verb that is running.

    Args:
        words: the command line after `mindpangu`.
        log: file for its output.
        environment: variables to set.
        limits: resource → soft and hard limit, as `resource.setrlimit` takes them.
        jumping_clock: True to let the time of day jump by up to a day, back and forth.
    """

    def __init__(self, words, log: Path, environment=None, limits=None, jumping_clock=False):
        self._log = log
        self._started = time.monotonic()
        arguments = (list(map(str, words)), str(log), dict(environment or {}), dict(limits or {}), jumping_clock)
        self._process = _SERVER.Process(target=_run, args=arguments)
        self._process.start()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal to the verb and all its children."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:  # it has just begun, or has ended
            self._process.kill() if number == signal.SIGKILL else os.kill(self._process.pid, number)

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_running(self) -> bool:
        return self._process.is_alive()

    def wait(self, seconds: float = 120.0) -> Outcome:
        """Returns how the verb ended; fails the test if it is still running after `seconds`."""
        self._process.join(seconds)
        took = time.monotonic() - self._started
        if self._process.exitcode is None:
            self.kill()
            raise AssertionError(f"still running after {took:.0f} s: {self._log.read_text(errors='replace')[-2000:]}")
        return Outcome(self._process.exitcode, self._log.read_text("utf-8", errors="replace"), took)


def run_verb(words, log: Path, seconds: float = 120.0, **settings) -> Outcome:
    """Runs a verb to its end; see `Verb` for the settings."""
    return Verb(words, log, **settings).wait(seconds)


def _run(words, log, environment, limits, jumping_clock):
    import resource

    from mindpangu.cli.main import main

    os.setsid()
    os.environ.update(environment)
    for kind, values in limits.items():
        resource.setrlimit(kind, values)
    if jumping_clock:
        now = time.time
        time.time = lambda: now() + random.uniform(-86400.0, 86400.0)
    with open(log, "wb", 0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115 - until the process ends
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    code = 70
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)
