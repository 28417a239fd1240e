"""locks.py: one writer at a time, whose death is noticed; the same with flock and without."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, replace

import pytest

from mindpangu import locks
from mindpangu.errors import CheckpointError, InUseError
from mindpangu.locks import Owner, clear_leftovers, locked, scratch_path, unique_name

NO_FLOCK = """
import errno, fcntl
def refuse(*_):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = refuse
"""

HOLD = """
import sys
from pathlib import Path
from mindpangu.locks import locked, scratch_path, unique_name
with locked(Path(sys.argv[1])) as destination:
    scratch_path(destination, unique_name()).mkdir()
    print("locked", flush=True)
    sys.stdin.read()
"""

COUNT = """
import sys
from pathlib import Path
from mindpangu.locks import locked
path = Path(sys.argv[1])
for _ in range(int(sys.argv[2])):
    with locked(path.with_name("new") / "out", wait=60):
        path.write_text(str(int(path.read_text()) + 1))
"""


@pytest.fixture(params=["flock", "no flock"])
def preamble(request, monkeypatch):
    """Code at the start of other processes; with it, and in this process, there is flock or none."""
    if request.param == "flock":
        return ""
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOSYS))
    return NO_FLOCK


def refuse(number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    return flock


@contextlib.contextmanager
def holder(preamble, path):
    """Runs a process that holds a lock inside the block, with a scratch folder."""
    command = [sys.executable, "-c", preamble + HOLD, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    try:
        yield process
    finally:
        process.communicate()


def test_the_second_of_two_processes_is_told_who_the_first_is(tmp_path, preamble):
    path = tmp_path / "out"

    with holder(preamble, path) as process:
        with pytest.raises(InUseError) as error, locked(path, wait=0.1):
            pass

    host = Owner.this_process().host
    assert str(error.value) == (f"{path} is being written by process {process.pid} on {host}; wait for it or stop it")


def test_the_lock_is_free_and_gone_after_the_block(tmp_path, preamble):
    for _ in range(2):
        with locked(tmp_path / "out") as destination:
            assert len(os.listdir(tmp_path)) == 1
            assert destination == tmp_path / "out"

    assert os.listdir(tmp_path) == []


def test_leftovers_of_a_killed_process_are_removed(tmp_path, preamble):
    with holder(preamble, tmp_path / "out") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(os.listdir(tmp_path)) == 2

    with locked(tmp_path / "out", wait=0):
        pass

    assert os.listdir(tmp_path) == []


def test_only_leftovers_of_dead_processes_are_cleared(tmp_path, preamble):
    """Also not what looks similar, but is a user's, or another destination's."""
    with holder(preamble, tmp_path / "dead") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    other = scratch_path(tmp_path / "out.v2", unique_name())
    kept = [tmp_path / ".poetry.lock", tmp_path / ".note.writing", tmp_path / ".pipe.lock"]
    for path in kept[:2]:
        path.write_text("a user's")
    os.mkfifo(kept[2])

    with holder(preamble, tmp_path / "alive"):
        before = {name for name in os.listdir(tmp_path) if "alive" in name}
        clear_leftovers(tmp_path)
        assert set(os.listdir(tmp_path)) == before | {path.name for path in kept}
    other.mkdir()
    with locked(tmp_path / "out"):
        assert other.exists()


def test_a_lock_is_held_by_one_thread_which_may_take_it_again(tmp_path, preamble):
    failures = []

    def other_thread():
        with pytest.raises(InUseError) as error, locked(tmp_path / "out", wait=0):
            pass
        failures.append(str(error.value))

    with locked(tmp_path / "out"), locked(tmp_path / "out"):
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()

    assert f"by process {os.getpid()} on" in failures[0]


def test_created_folders_that_stay_empty_are_removed(tmp_path, preamble):
    with locked(tmp_path / "a" / "b" / "out"):
        pass
    assert os.listdir(tmp_path) == []

    with locked(tmp_path / "a" / "b" / "out") as destination:
        destination.mkdir()
    assert destination.is_dir()


def test_increments_by_several_processes_are_all_counted(tmp_path, preamble):
    """Each process creates and removes the lock and its folder all the time."""
    processes = 3
    rounds = 40
    counter = tmp_path / "counter"
    counter.write_text("0")
    command = [sys.executable, "-c", preamble + COUNT, str(counter), str(rounds)]

    started = [subprocess.Popen(command) for _ in range(processes)]

    assert [process.wait() for process in started] == [0] * processes
    assert counter.read_text() == str(processes * rounds)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["counter"]


@pytest.mark.parametrize("content", ["", "{", '{"host": 1}', "\0" * 100])
def test_a_lock_file_without_a_holder_is_not_in_the_way(tmp_path, content):
    (tmp_path / ".out.lock").write_text(content)

    with locked(tmp_path / "out", wait=0):
        pass

    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text("a user's own file"),
        lambda path: path.symlink_to("precious"),
        lambda path: path.symlink_to("absent"),
        os.mkfifo,
        os.mkdir,
    ],
    ids=["file", "link", "dangling link", "FIFO", "folder"],
)
def test_a_file_that_is_not_a_lock_stays_as_it_is(tmp_path, make):
    """It may be the user's, or in a folder from elsewhere, where it may lead to any file of the user."""
    (tmp_path / "precious").write_text("former")
    make(tmp_path / ".out.lock")
    before = {path.name: path.lstat() for path in tmp_path.iterdir()}

    with pytest.raises(FileExistsError, match=r"\.out\.lock next to it is not a lock; remove or rename that file"):
        with locked(tmp_path / "out"):
            pass

    after = {path.name: path.lstat() for path in tmp_path.iterdir()}
    assert {name: (status.st_ino, status.st_size) for name, status in after.items()} == {
        name: (status.st_ino, status.st_size) for name, status in before.items()
    }
    assert (tmp_path / "precious").read_text() == "former"


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_a_killed_process_was_replacing_is_restored(tmp_path, replaced):
    """The new folder did not have the name yet, or it had."""
    former = scratch_path(tmp_path / "out", "host-1-2-0123abcd", "former")
    former.mkdir()
    (former / "file").write_text("former")
    if replaced:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "file").write_text("new")

    with locked(tmp_path / "out"):
        pass

    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out" / "file").read_text() == ("new" if replaced else "former")


def test_a_process_id_that_is_used_again_is_another_process():
    me = Owner.this_process()

    assert not me.is_dead
    assert replace(me, started=me.started - 1).is_dead
    assert replace(me, pid=1 << 30).is_dead
    assert not replace(me, pid=1 << 30, machine="another").is_dead
    assert not replace(me, pid=1 << 30, machine="").is_dead


def test_the_lock_of_another_machine_is_reported_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refuse(errno.EOPNOTSUPP))
    lock = tmp_path / ".out.locked"
    lock.mkdir()
    foreign = replace(Owner.this_process(), host="far", machine="another", pid=7)
    (lock / "far-7-1-01234567").write_text(json.dumps(asdict(foreign)))

    with pytest.raises(InUseError) as error, locked(tmp_path / "out", wait=0):
        pass

    assert str(error.value).endswith(f"by process 7 on far; wait for it or stop it. If it has ended, remove {lock}")
    assert os.listdir(tmp_path) == [".out.locked"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_flock_gets_a_folder(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", refuse(number))

    with locked(tmp_path / "out"):
        (entry,) = (tmp_path / ".out.locked").iterdir()
        assert Owner.read(entry) == Owner.this_process()
        assert os.listdir(tmp_path) == [".out.locked"]


def test_a_flock_that_other_hosts_do_not_see_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_flock_is_local", lambda descriptor: True)

    with locked(tmp_path / "out"):
        assert os.listdir(tmp_path) == [".out.locked"]


@pytest.mark.parametrize(
    ("mount", "is_local"),
    [
        ("rw - lustre fs rw,flock", False),
        ("rw - lustre fs rw,localflock", True),
        ("rw - nfs4 server:/ rw,local_lock=none", False),
        ("rw - nfs server:/ rw,local_lock=all,addr=1", True),
        ("rw - nfs server:/ rw,nolock", True),
    ],
)
def test_mount_options_tell_whether_other_hosts_see_a_flock(tmp_path, monkeypatch, mount, is_local):
    device = os.stat(tmp_path).st_dev
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"1 1 0:0 / / rw - ext4 x rw,localflock\n2 1 {os.major(device)}:{os.minor(device)} / {tmp_path} {mount}\n"
    )
    monkeypatch.setattr(locks, "_MOUNTS", mounts)

    with open(mounts) as file:
        assert locks._flock_is_local(file.fileno()) == is_local


def test_an_error_names_the_destination(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(NotADirectoryError) as error, locked(tmp_path / "file" / "out"):
        pass

    assert error.value.filename == str(tmp_path / "file" / "out")


LONG = ["x" * 255, "中" * 85, "\udcb2" * 255, "x" * 151]


@pytest.mark.parametrize("name", LONG, ids=["ASCII", "Chinese", "no UTF-8", "a little too long"])
def test_a_destination_may_have_the_longest_possible_name(tmp_path, preamble, name):
    with holder(preamble, tmp_path / name) as process:
        with pytest.raises(InUseError), locked(tmp_path / name, wait=0.1):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    other = name[:-1] + "y" if len(os.fsencode(name[:-1] + "y")) <= 255 else name[:-1]
    with locked(tmp_path / other):
        assert len(os.listdir(tmp_path)) == 3  # two long names with the same beginning have different locks

    clear_leftovers(tmp_path)

    assert os.listdir(tmp_path) == []


def test_the_next_writer_of_a_long_name_removes_what_the_last_one_left(tmp_path, preamble):
    path = tmp_path / ("中" * 85)
    with holder(preamble, path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()

    with locked(path, wait=0):
        assert len(os.listdir(tmp_path)) == 1

    assert os.listdir(tmp_path) == []


def test_a_folder_with_a_long_name_is_restored_under_this_name_only(tmp_path):
    """`clear_leftovers` knows only the shortened name."""
    path = tmp_path / ("x" * 255)
    former = scratch_path(path, "host-1-2-0123abcd", "former")
    former.mkdir()

    clear_leftovers(tmp_path)
    kept = os.listdir(tmp_path)
    with locked(path):
        pass

    assert kept == [former.name]
    assert os.listdir(tmp_path) == [path.name]


def test_other_users_see_a_lock_whatever_the_umask_is(tmp_path, preamble):
    before = os.umask(0o077)
    try:
        with locked(tmp_path / "out"):
            modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
            folders = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_dir()}
    finally:
        os.umask(before)

    assert modes == {0o644}
    assert folders <= {0o755}


@pytest.mark.parametrize(
    ("name", "manifest", "is_checkpoint"),
    [
        ("iteration_00000004", '{"format_version": 1, "step": 4, "files": {}}', True),
        ("iteration_00000004", "damaged", True),
        ("best", '{\n "format_version": 1,\n "step": 4,\n "files": {}\n}', True),
        ("extension", '{"name": "an extension of a browser", "version": 1}', False),
        ("iteration_00000004", None, False),
    ],
)
def test_nothing_inside_a_checkpoint_is_locked(tmp_path, name, manifest, is_checkpoint):
    folder = tmp_path / name
    folder.mkdir()
    if manifest:
        (folder / "manifest.json").write_text(manifest)
    (tmp_path / "link").symlink_to(folder)

    for path in (folder / "a", folder / "new" / "a", tmp_path / "link" / "a"):
        if is_checkpoint:
            with pytest.raises(CheckpointError, match=f"is in the checkpoint {name}, which stays"), locked(path):
                pass
        else:
            with locked(path):
                pass
    with locked(folder):  # as one that takes its place
        pass
    clear_leftovers(folder)
    assert [path.name for path in folder.iterdir()] == ["manifest.json"] * bool(manifest)
