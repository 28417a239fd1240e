"""Ctrl-C while the command line starts; tests/drills/test_signals.py sends signals to running verbs."""

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]

INTERRUPTED_IMPORT = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == "mindpangu.cli.main":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python starts, unless Ctrl-C is ignored
sys.meta_path.insert(0, Interrupt())
from mindpangu.__main__ import main
sys.exit(main())
"""


def test_ctrl_c_while_the_command_line_is_imported_leaves_no_traceback():
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT, "config"],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "mindpangu: stopped by SIGINT\n")
