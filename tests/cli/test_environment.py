"""Variables that would change a run are refused or ignored, and a limit that ends a verb is named."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mindpangu.cli.environment import check_variables, describe_exhaustion
from mindpangu.cli.main import main

PROJECT = Path(__file__).parents[2]


@pytest.mark.parametrize("value", ["1", "true"])
def test_mindspores_compile_cache_is_refused(monkeypatch, capsys, value):
    monkeypatch.setenv("MS_COMPILER_CACHE_ENABLE", value)

    assert main(["config"]) == 1

    assert capsys.readouterr().err == (
        f"mindpangu: error: MS_COMPILER_CACHE_ENABLE is {value}: MindSpore's compile cache gives wrong losses; unset "
        "the variable\n"
    )


@pytest.mark.parametrize("value", ["", "0"])
def test_a_compile_cache_that_is_switched_off_is_none(monkeypatch, value):
    monkeypatch.setenv("MS_COMPILER_CACHE_ENABLE", value)
    check_variables()


def test_the_rank_of_another_job_is_ignored_with_one_line(monkeypatch, capsys):
    monkeypatch.delenv("MS_ROLE", raising=False)
    monkeypatch.setenv("RANK_ID", "1")
    monkeypatch.setenv("RANK_SIZE", "2")

    check_variables()

    assert (
        capsys.readouterr().err
        == "mindpangu: ignoring RANK_ID=1, RANK_SIZE=2, because msrun did not start this process\n"
    )
    assert "RANK_ID" not in os.environ


def test_a_rank_that_msrun_started_keeps_its_variables(monkeypatch, capsys):
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")
    monkeypatch.setenv("RANK_ID", "1")

    check_variables()

    assert capsys.readouterr().err == ""
    assert os.environ["RANK_ID"] == "1"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("Unable to allocate 3 GiB"), "not enough memory: Unable to allocate 3 GiB"),
        (
            ValueError("Maximum allowed dimension exceeded"),
            "not enough memory: Maximum allowed dimension exceeded. Make",
        ),
        (OverflowError("Python int too large to convert to C ssize_t"), "not enough memory: Python int too large"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "not enough memory: "),
        (ImportError("libx.so: failed to map segment from shared object"), "not enough memory: libx.so"),
        (
            RuntimeError("\n---\n- Memory not enough:\n---\nMemory isn't enough, size: 16B.\n\nC++ Call Stack"),
            "not enough memory: Memory isn't enough, size: 16B. Make",
        ),
        (RuntimeError("can't start new thread"), "no thread can be started"),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "no process can be started"),
        (OSError(errno.EMFILE, "Too many open files"), "too many files are open"),
        (OSError(errno.EFBIG, "File too large", "x.npz"), "x.npz is too large"),
        (ValueError("a defect"), None),
        (OSError(errno.ENOSPC, "No space left on device"), None),
    ],
)
def test_what_ran_out_is_named(error, message):
    described = describe_exhaustion(error)

    assert described is None if message is None else described.startswith(message)


@pytest.mark.parametrize(
    ("command", "limit", "words"),
    [("-v", 300_000, "the address space is limited to 0.3 GiB, see ulimit -v"), ("-n", 6, "see ulimit -n")],
)
def test_a_limit_that_ends_a_verb_is_named(command, limit, words, tmp_path, tiny_overrides):
    options = [word for key, value in tiny_overrides.items() for word in (f"--{key}", value)]
    script = f'ulimit {command} {limit}; exec "$@"'

    done = subprocess.run(
        ["bash", "-c", script, "bash", sys.executable, "-m", "mindpangu", "train", *options],
        env=os.environ | {"PYTHONPATH": str(PROJECT), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 1, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_limits_are_named_only_where_they_are_set(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert describe_exhaustion(RuntimeError("can't start new thread")) == "no thread can be started"


def test_docstrings_may_be_stripped(tmp_path):
    """PYTHONOPTIMIZE=2 removes the texts from which the help is made."""
    command = [sys.executable, "-m", "mindpangu", "config", "--get", "training.seed"]
    environment = os.environ | {"PYTHONOPTIMIZE": "2", "PYTHONPATH": str(PROJECT)}

    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_a_working_directory_that_was_removed_is_named(tmp_path, monkeypatch, capsys):
    """Otherwise a message could advise to remove a checkpoint that is not there."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()

    assert main(["experts", "list", "--checkpoint", "../run"]) == 1

    assert capsys.readouterr().err == (
        "mindpangu: error: the current directory was removed; change to one that exists\n"
    )
