"""Copies the project folder for mutants, and runs pytest in such a copy, in a forked process.

Importing MindSpore takes seconds. The parent imports it, but nothing from this project, so a forked process can start
its tests at once with the sources of its own copy. MindSpore can compile in a forked process as long as its parent has
compiled nothing.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FAILED_TO_START = 250  # exit code of a run that ended before pytest


def copy_tree(root: Path, folder: Path) -> None:
    """Copies the files that Git tracks or would add, and the compiled kernels, which are named after their sources."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
    kernels = Path("ascend_ops", "_build")
    if (root / kernels).is_dir():
        shutil.copytree(root / kernels, folder / kernels)


def preload() -> None:
    """Imports the libraries that the tests need."""
    # Python would reuse a .pyc file for another mutant of the same size that was written in the same second
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.environ.setdefault("GLOG_v", "3")
    import hypothesis
    import mindspore  # noqa: F401
    import numpy  # noqa: F401
    import pytest  # noqa: F401
    import safetensors  # noqa: F401
    import sentencepiece  # noqa: F401

    # the same examples in every run, and no deadlines, which a busy machine would miss
    hypothesis.settings.register_profile(
        "mutants", deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
    )


def run_tests(tree: Path, tests: list[str], seconds: float, plugins: tuple[object, ...] = ()) -> int | None:
    """Runs pytest on `tests` in a forked process and returns its exit code.

    Args:
        tree: copy of the project folder; its sources are used.
        tests: files or node ids below the tree. Without plugins, the first failure ends the run.
        seconds: timeout.

    Returns:
        pytest's exit code, the negative number of the signal that ended the process, or None after a timeout.
    """
    child = os.fork()
    if child == 0:
        _run_in_child(tree, tests, plugins)
    deadline = time.monotonic() + seconds
    status = None
    while status is None and time.monotonic() < deadline:
        ended, waited = os.waitpid(child, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(waited)
        else:
            time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # and everything that its tests left running
    if status is None:
        os.waitpid(child, 0)
    return status


def _run_in_child(tree: Path, tests: list[str], plugins: tuple[object, ...]) -> None:
    code = FAILED_TO_START
    try:
        os.setsid()
        scratch = tree.with_name(f"{tree.name}_scratch")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        output = os.open(tree.with_name(f"{tree.name}.log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(tree)
        os.environ["PYTHONPATH"] = str(tree)
        os.environ["TMPDIR"] = str(scratch)
        tempfile.tempdir = None  # forgets the parent's cached choice
        sys.path.insert(0, str(tree))

        import pytest

        options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-profile=mutants"]
        options.append(f"--basetemp={scratch / 'pytest'}")
        if not plugins:
            options.append("-x")
        code = int(pytest.main([*options, *tests], plugins=list(plugins)))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # without running the exit handlers of the parent's libraries
