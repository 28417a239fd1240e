"""Entry point of `python -m mindpangu` and of the console script `mindpangu`."""

import signal
import sys


def main() -> int:
    """Runs the command line and returns the exit code.

    All threads block SIGINT (see `signals.deliver_interrupts`), so Ctrl-C during the imports waits for their end.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # before and after the command line handles signals
    from mindpangu.cli.main import main as run_command_line

    return run_command_line()


if __name__ == "__main__":
    sys.exit(main())
