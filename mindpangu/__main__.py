"""Entry point of `python -m mindpangu` and of the console script `mindpangu`."""

import os
import signal
import sys

from mindpangu.signals import STOP_SIGNALS, exit_code


def main() -> int:
    """Runs the command line and returns the exit code.

    All threads block SIGINT (see `signals.deliver_interrupts`), so Ctrl-C during the imports waits for their end.
    Before and after the command line handles signals, they end the process with the same exit codes.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    for signum in STOP_SIGNALS:
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, lambda signum, frame: os._exit(exit_code(signum)))
    from mindpangu.cli.main import main as run_command_line

    return run_command_line()


if __name__ == "__main__":
    sys.exit(main())
