"""Ends a program when a signal asks it to: SIGINT (Ctrl-C), SIGTERM, or SIGHUP, which a lost connection sends.

A signal that was ignored when the program started, as SIGHUP is under nohup, stays ignored.
"""

import _thread
import contextlib
import math
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any, NoReturn

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that ask a program to end."""

REPEAT_S = 0.5
"""Signals that arrive within this many seconds of one another count as one request.

A scheduler may send a signal to all processes of a job. A process then gets it a second time from the script that
started it.
"""

_GRACE_S = 2.0  # time for a call into a library to return, after which Python handles the signal


class StoppedBySignal(KeyboardInterrupt):
    """A signal stopped the program. The command line prints one line and exits with 128 + the number of the signal."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signal.Signals(signum)


class StopOnSignal:
    """Context manager that turns signals into requests to stop.

    The first `patience` requests only set `requested`, so that the work can go on until its state can be saved. The
    next one raises `StoppedBySignal`. One more ends the process as if the signal had not been caught.

    Python runs a handler only between its own instructions. While the main thread is in a long call into a library,
    `StoppedBySignal` cannot be raised; another thread ends the process instead.

    Args:
        patience: number of requests that do not interrupt the work.

    Attributes:
        requested: the signal of the last request, or None.
    """

    def __init__(self, patience: int = 1) -> None:
        self.requested: signal.Signals | None = None
        self._patience = patience
        self._handled = _Requests()
        self._previous_handlers: dict[signal.Signals, Any] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._end_unhandled, name="signals", daemon=True)

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():
            for caught in STOP_SIGNALS:
                if signal.getsignal(caught) != signal.SIG_IGN:
                    self._previous_handlers[caught] = signal.signal(caught, self._handle)
            self._reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._previous_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._thread.is_alive():
            return
        signal.set_wakeup_fd(self._previous_fd, warn_on_full_buffer=False)
        for caught, handler in self._previous_handlers.items():
            signal.signal(caught, signal.SIG_DFL if handler is None else handler)
        self._ended.set()
        os.close(self._writer)
        self._thread.join()
        os.close(self._reader)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if not self._handled.add(signum):
            return
        self.requested = signal.Signals(signum)
        if self._handled.count == self._patience + 1:
            raise StoppedBySignal(signum)
        if self._handled.count > self._patience + 1:
            signal.signal(signum, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signum])
            signal.raise_signal(signum)

    def _end_unhandled(self) -> None:
        """Ends the process if no handler runs. This is the thread to which Python passes signals as they arrive."""
        received = _Requests()
        while numbers := os.read(self._reader, 64):
            stopping = [number for number in numbers if number in STOP_SIGNALS]
            if not any(map(received.add, stopping)) or received.count <= self._patience:
                continue
            until = time.monotonic() + _GRACE_S
            while self._handled.count < received.count and not self._ended.wait(0.05):
                if time.monotonic() > until:
                    print(f"mindpangu: {describe_stop(stopping[-1])}", file=sys.stderr, flush=True)
                    os._exit(exit_code(stopping[-1]))


class _Requests:
    """Counts requests to stop: signals, without repetitions.

    After a terminal is lost, the shell and the kernel both send SIGHUP, at any interval. All SIGHUPs are one request.
    """

    def __init__(self) -> None:
        self.count = 0
        self._last = -math.inf
        self._hung_up = False

    def add(self, signum: int) -> bool:
        """Counts a signal that has just arrived. Returns False if it only repeats an earlier one."""
        now = time.monotonic()
        if now - self._last < REPEAT_S or (signum == signal.SIGHUP and self._hung_up):
            return False
        self._last = now
        self._hung_up |= signum == signal.SIGHUP
        self.count += 1
        return True


def deliver_interrupts() -> None:
    """Passes SIGINT to Python's handler from now on, although every thread blocks it; `mindpangu.__main__` does that.

    While MindSpore compiles, it has a handler of its own for SIGINT, which sends SIGTERM to the process, even if SIGINT
    was ignored. A blocked signal reaches no handler; a thread waits for it here and tells Python that it has arrived.
    """
    main = threading.main_thread().ident
    assert main is not None
    signal.signal(signal.SIGURG, lambda signum, frame: None)  # only interrupts system calls of the main thread

    def deliver() -> None:
        while True:
            _thread.interrupt_main(signal.Signals(signal.sigwait([signal.SIGINT])))
            signal.pthread_kill(main, signal.SIGURG)

    threading.Thread(target=deliver, name="interrupts", daemon=True).start()


def exit_code(signum: int) -> int:
    """Returns the exit code of a program that a signal stopped, as in shells: 130 INT, 143 TERM, 129 HUP."""
    return 128 + signum


def exit_at_once(code: int) -> NoReturn:
    """Ends the process without the exit handlers of libraries, which abort if a signal interrupted an import."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):
            stream.flush()
    os._exit(code)


def describe_stop(signum: int) -> str:
    """Returns the line that a program prints when a signal has stopped it."""
    return f"stopped by {signal.Signals(signum).name}"
