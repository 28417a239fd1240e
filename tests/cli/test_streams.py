"""Standard output that cannot be written is one error, and output that nobody reads ends a verb quietly."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
KEYS = [sys.executable, "-m", "mindpangu", "config", "--keys"]


def run(command, **streams):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": str(PROJECT)}, text=True, timeout=60, **streams)


def test_a_full_disk_behind_standard_output_is_named():
    with open("/dev/full", "w") as full:
        done = run(KEYS, stdout=full)

    assert done.returncode == 1
    assert done.stderr == "mindpangu: error: standard output: No space left on device\n"


def test_a_reader_that_has_seen_enough_ends_a_verb_quietly():
    done = run(["bash", "-c", '"$@" | head -n 1; exit ${PIPESTATUS[0]}', "bash", *KEYS])

    assert done.returncode == 141
    assert done.stderr == ""


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_help_that_cannot_be_written_is_an_error_too(word):
    command = [sys.executable, "-m", "mindpangu", word]
    with open("/dev/full", "w") as full:
        done = run(command, stdout=full)

    assert (done.returncode, done.stderr) == (1, "mindpangu: error: standard output: No space left on device\n")

    done = run(["bash", "-c", '"$@" | true; exit ${PIPESTATUS[0]}', "bash", *command])

    assert done.returncode in (0, 141)  # whichever of the two was faster
    assert done.stderr == ""


def test_standard_error_that_cannot_be_written_does_not_change_the_exit_code():
    with open("/dev/full", "w") as full:
        done = run([*KEYS[:-1], "--config", "none.yaml"], stderr=full)

    assert done.returncode == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_receive_other_files(closed, tmp_path):
    """The next file that is opened would get the number of a closed stream, and whatever is printed to it."""
    script = f'"$@" {closed}'
    program = """
import os, sys
from mindpangu.cli.streams import guarded_streams

with guarded_streams(), open(sys.argv[1], "w") as file:
    os.write(1, b"printed")
    os.write(2, b"printed")
    print("printed")
    file.write("only this")
"""
    done = run(["bash", "-c", script, "bash", sys.executable, "-c", program, str(tmp_path / "file")])

    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "only this"
