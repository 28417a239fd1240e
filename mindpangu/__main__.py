"""Entry point of `python -m mindpangu` and of the console script `mindpangu`."""

import os
import signal
import sys
from types import FrameType

from mindpangu.signals import STOP_SIGNALS, exit_code


def main() -> int:
    """Runs the command line and returns the exit code.

    All threads block SIGINT (see `signals.deliver_interrupts`), so Ctrl-C during the imports waits for their end.
    Before and after the command line handles signals, they end the process with the same exit codes.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    for caught in STOP_SIGNALS:
        if signal.getsignal(caught) != signal.SIG_IGN:
            signal.signal(caught, _end)
    from mindpangu.cli.main import main as run_command_line

    return run_command_line()


def _end(signum: int, frame: FrameType | None) -> None:
    os._exit(exit_code(signum))


if __name__ == "__main__":
    sys.exit(main())
