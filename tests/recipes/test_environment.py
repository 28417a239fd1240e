"""recipes/environment.sh finds an interpreter, builds .venv once, and explains what it cannot use."""

import os
import shutil
import signal
import subprocess
import time

import pytest
from stand_ins import PYTHON


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "no such interpreter"),
        ("#!/bin/sh\nexit 1\n", "it does not run"),
        ("#!/bin/sh\necho 'Traceback' >&2; echo 'it has no module mindspore' >&2; exit 1\n", "no module mindspore"),
    ],
)
def test_a_given_python_that_cannot_be_used_is_named_in_one_line(machine, text, complaint):
    if text:
        machine.add_program("broken", text)

    done = machine.run(MINDPANGU_PYTHON=str(machine.bin / "broken"))

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"MINDPANGU_PYTHON={machine.bin / 'broken'}" in line
    assert complaint in line


def test_the_compile_cache_is_switched_off_with_a_warning(machine):
    done = machine.run(MS_COMPILER_CACHE_ENABLE="1")
    assert done.stderr.count("MS_COMPILER_CACHE_ENABLE") == 1


def test_venv_is_built_once_and_then_reused_silently(clone):
    code, output = clone.prepare()
    assert code == 0
    assert "venv is ready" in output

    assert clone.prepare() == (0, f"{clone.project}/.venv/bin/python\n")
    assert (clone.calls("venv"), clone.calls("pip")) == (1, 1)


def test_an_extra_is_added_and_kept(clone):
    clone.prepare()
    clone.prepare("dev")
    clone.prepare()

    assert (clone.calls("venv"), clone.calls("pip")) == (1, 2)
    assert any("--editable .[dev]" in line for line in clone.log_lines("python"))


def test_a_changed_pyproject_is_installed_again_with_the_same_extras(clone):
    clone.prepare("dev")
    with open(clone.project / "pyproject.toml", "a", encoding="utf-8") as file:
        file.write("# changed\n")

    clone.prepare()
    clone.prepare()

    assert (clone.calls("venv"), clone.calls("pip")) == (1, 2)
    assert sum("--editable .[dev]" in line for line in clone.log_lines("python")) == 2


def test_a_failed_installation_is_shown_and_redone_from_scratch(clone):
    code, output = clone.prepare(PIP_EXIT="1")
    assert code == 1
    assert "Collecting mindspore" in output
    assert ".venv/install.log" in output

    (clone.project / ".venv/half-written").touch()
    assert clone.prepare()[0] == 0
    assert not (clone.project / ".venv/half-written").exists()


def test_an_installation_killed_midway_is_redone(clone):
    process = clone.start(PIP_SECONDS="0.5")
    while clone.calls("pip") == 0:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL

    assert clone.prepare()[0] == 0  # waits for the pip that is still running

    assert (clone.calls("venv"), clone.calls("pip")) == (2, 2)


def test_after_a_move_or_with_a_broken_python_the_venv_is_built_again(clone):
    clone.prepare()

    moved = clone.folder / "moved"
    clone.project = clone.project.rename(moved)
    assert clone.prepare()[1].endswith(f"{moved}/.venv/bin/python\n")

    (moved / ".venv/bin/python").unlink()
    assert clone.prepare()[0] == 0
    assert (clone.calls("venv"), clone.calls("pip")) == (3, 3)


def test_a_venv_that_the_user_made_is_kept(clone):
    (clone.project / ".venv/bin").mkdir(parents=True)
    shutil.copy(clone.bin / "python", clone.project / ".venv/bin/python")
    (clone.project / ".venv/file_of_the_user").touch()

    assert clone.prepare()[0] == 0

    assert (clone.project / ".venv/file_of_the_user").exists()
    assert (clone.calls("venv"), clone.calls("pip")) == (0, 1)


WITHOUT_FLOCK = 'command() { [ "$2" != flock ] && builtin command "$@"; };'


@pytest.mark.parametrize("before", ["", WITHOUT_FLOCK], ids=["flock", "no-flock"])
def test_two_starts_at_once_install_once(clone, before):
    starts = [clone.start("", before, PIP_SECONDS="0.5") for _ in range(2)]

    assert [start.wait(timeout=60) for start in starts] == [0, 0]
    assert (clone.calls("venv"), clone.calls("pip")) == (1, 1)
    assert sum("waiting for it" in start.stdout.read() for start in starts) == 1


@pytest.mark.parametrize("before", ["", WITHOUT_FLOCK], ids=["flock", "no-flock"])
def test_a_project_folder_that_cannot_be_written_is_named_with_the_remedy(clone, before):
    (clone.project / ".venv.lock").mkdir()
    (clone.project / "build").touch()

    code, output = clone.prepare("", before)

    assert code == 1
    assert output == (
        f"error: {clone.project} cannot be written, so .venv cannot be built there: set MINDPANGU_PYTHON to an "
        "interpreter that has MindSpore\n"
    )


def test_without_flock_the_lock_of_a_dead_start_is_removed(clone):
    lock = clone.project / "build/venv.lock"
    lock.mkdir(parents=True)
    dead = subprocess.Popen(["true"])
    dead.wait()
    (lock / "owner").write_text(f"{os.uname().nodename} {dead.pid}\n")

    assert clone.prepare("", WITHOUT_FLOCK)[0] == 0

    assert not lock.exists()


def test_an_interpreter_that_does_not_run_is_skipped(clone):
    clone.add_program("python3", "#!/bin/sh\necho 'pyenv: python3: command not found' >&2; exit 127\n")
    clone.add_program("python3.12", "#!/bin/sh\necho 'is 3.12 without venv and ensurepip'\n")
    clone.add_program("python3.11", PYTHON)

    assert f"Creating .venv with {clone.bin}/python3.11." in clone.prepare()[1]


def test_when_no_interpreter_fits_all_that_were_tried_are_listed(clone):
    for name in ("python3", "python", "python3.12", "python3.11", "python3.10"):
        clone.add_program(name, "#!/bin/sh\necho 'is 3.9'\n")
    clone.add_program("python3.12", "#!/bin/sh\nexit 127\n")

    code, output = clone.prepare()

    assert code == 1
    assert "no Python 3.10 to 3.12 was found" in output
    assert "  python3 is 3.9\n  python3.12 does not run\n" in output
    assert "MINDPANGU_PYTHON" in output


def test_a_relative_python_is_searched_where_the_user_stands(machine, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    (here / "own").symlink_to(machine.bin / "python")

    assert machine.run(MINDPANGU_PYTHON="./own", cwd=here).returncode == 0
    assert machine.run(MINDPANGU_PYTHON="./nowhere", cwd=here).returncode == 1


def test_a_relative_folder_of_wheels_is_searched_where_the_user_stands(clone, tmp_path):
    here = tmp_path / "here"
    (here / "wheels").mkdir(parents=True)
    script = f"cd {here}; cd {clone.project}; source recipes/environment.sh; from_start wheels; from_start https://a/b"

    done = subprocess.run(["bash", "-euc", script], env=clone.environment(), capture_output=True, text=True, check=True)

    assert done.stdout == f"{here}/wheels\nhttps://a/b\n"
