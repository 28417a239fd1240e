"""Runs the programs in tools/ like a verb: an error that the user can fix is one message, not a traceback."""

import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from mindpangu.cli.main import explain
from mindpangu.display import printable, short_lines
from mindpangu.interpreter import prepare_interpreter
from mindpangu.signals import exit_code


def run_program(main: Callable[[], int | None]) -> NoReturn:
    """Runs the main function of a program and exits with its code, with 1 after an error, or with 130 after Ctrl-C."""
    prepare_interpreter()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(exit_code(signal.SIGINT))
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        print(f"error: {short_lines(printable(message))}", file=sys.stderr)
        sys.exit(1)
