"""Runs verbs of mindpangu in processes of their own, which a drill can kill, and which start within milliseconds.

A process is forked from a server that has imported everything that verbs need, but has compiled nothing.
"""

import contextlib
import multiprocessing
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "psutil",
        "mindspore",
        "matplotlib.backends.backend_agg",
        "mindpangu.cli.main",
        "mindpangu.data.prepare",
        "mindpangu.evaluation.heldout",
        "mindpangu.generation.terminal",
        "mindpangu.lifecycle.add",
        "mindpangu.lifecycle.export",
        "mindpangu.lifecycle.extract",
        "mindpangu.lifecycle.finetune",
        "mindpangu.lifecycle.pangu_alpha",
        "mindpangu.lifecycle.resize",
        "mindpangu.lifecycle.upcycle",
        "mindpangu.tiny.tokenizer.compaction",
        "mindpangu.tokenizer.extend",
        "mindpangu.train.report",
        "mindpangu.train.run",
    ]
)


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
        assert self.code == 0, f"exit code {self.code}: {self.output[-2000:]}"

    def require_one_message(self, *any_of: str) -> None:
        """Asserts that the verb refused with one message and no traceback.

        Args:
            any_of: the message must contain one of these; if there are none, any message will do.
        """
        assert self.code == 1, f"exit code {self.code}: {self.output[-2000:]}"
        assert "Traceback" not in self.output, self.output[-3000:]
        assert len(self.errors) == 1, self.output[-2000:]
        assert not any_of or any(word in self.errors[0] for word in any_of), self.errors[0]


class Verb:
    """A verb that is running.

    Args:
        words: the command line after `mindpangu`, or a function to call instead.
        log: file for its output.
        cwd: its working directory; None for that of the tests.
        begin: value of `time.monotonic` at which it begins, so that several can begin at the same moment.
        limits: resource → (soft, hard) limit, as `resource.setrlimit` takes them.
        jumping_clock: True to make the time of day jump back and forth by up to a day.
    """

    def __init__(
        self,
        words: Sequence[object] | Callable[[], None],
        log: Path,
        cwd: Path | None = None,
        begin: float = 0.0,
        limits: dict[int, tuple[int, int]] | None = None,
        jumping_clock: bool = False,
    ):
        self._log = log
        self._started = time.monotonic()
        work = words if callable(words) else list(map(str, words))
        arguments = (work, str(log), cwd and str(cwd), begin, limits or {}, jumping_clock)
        self._process = _SERVER.Process(target=_run, args=arguments)
        self._process.start()

    def kill(self, with_children: bool = True) -> None:
        """Kills the verb and, unless its children must notice by themselves, every process that it has started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            verb = psutil.Process(self.pid)
            for process in [verb, *(verb.children(recursive=True) if with_children else [])]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_running(self) -> bool:
        return self._process.is_alive()

    def wait(self, seconds: float = 180.0) -> Outcome:
        """Returns how the verb ended; fails the attempt if it is still running after `seconds`."""
        self._process.join(seconds)
        took = time.monotonic() - self._started
        if self._process.exitcode is None:
            self.kill()
            raise AssertionError(f"still running after {took:.0f} s: {self._output()[-2000:]}")
        return Outcome(self._process.exitcode, self._output(), took)

    def _output(self) -> str:
        """Returns everything that the verb has printed; "" if it was killed before it began."""
        return self._log.read_text("utf-8", errors="replace") if self._log.exists() else ""


def run_verb(words, log: Path, seconds: float = 180.0, **settings) -> Outcome:
    """Runs a verb to its end; see `Verb` for the settings."""
    return Verb(words, log, **settings).wait(seconds)


def _run(work, log, cwd, begin, limits, jumping_clock):
    import resource

    from mindpangu.cli.main import main
    from mindpangu.errors import MindPanguError

    os.setsid()
    with open(log, "wb", 0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115 - until the process ends
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    if cwd:
        os.chdir(cwd)
    for kind, values in limits.items():
        resource.setrlimit(kind, values)
    if jumping_clock:
        now = time.time
        time.time = lambda: now() + random.uniform(-86400.0, 86400.0)
    code = 70
    try:
        time.sleep(max(0.0, begin - time.monotonic()))
        code = main(work) if isinstance(work, list) else work()
    except SystemExit as end:
        code = end.code
    except (MindPanguError, OSError) as error:  # from a function; a verb prints its own errors
        print(f"mindpangu: error: {error}", file=sys.stderr)
        code = 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)
