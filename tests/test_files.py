"""files.py: everything is written completely or not at all, flushed before it is renamed, and read back the same."""

import errno
import json
import os
import re
import signal
from pathlib import Path

import pytest

from mindpangu import files, locks


def failing_chunks():
    """Yields content, and fails at the second piece."""
    yield b"first"
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def events(monkeypatch):
    """Records which paths are flushed to disk and which are renamed, in order."""
    calls = []
    fsync = os.fsync

    def known(path):
        return re.sub(r"[\w-]+-[0-9a-f]{8}(?=\.writing)", "UNIQUE", Path(path).name)

    replace = Path.replace
    rename = Path.rename

    def record_fsync(descriptor):
        calls.append(("fsync", known(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def record_replace(path, target):
        calls.append(("rename", known(path)))
        return replace(path, target)

    def record_rename(path, target):
        calls.append(("rename", known(path)))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    monkeypatch.setattr(Path, "rename", record_rename)
    return calls


def contents(folder):
    """Returns relative path → content for every file below a folder."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("data", [b"content", [b"con", b"tent"], iter([b"content"])])
def test_a_file_is_replaced_and_no_scratch_file_stays(tmp_path, data):
    path = tmp_path / "file"
    path.write_text("former")

    files.write_bytes_atomically(path, data)

    assert contents(tmp_path) == {"file": "content"}


def test_a_file_is_flushed_before_it_is_renamed_and_its_folder_after(tmp_path, events):
    files.write_text_atomically(tmp_path / "file", "π")

    assert events == [("fsync", ".file.UNIQUE.writing"), ("rename", ".file.UNIQUE.writing"), ("fsync", tmp_path.name)]


def test_a_failing_write_keeps_the_former_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("former")

    with pytest.raises(OSError, match="Input/output error"):
        files.write_bytes_atomically(path, failing_chunks())

    assert contents(tmp_path) == {"file": "former"}


def test_a_scratch_file_takes_the_final_name_on_success(tmp_path):
    path = tmp_path / "file"

    with files.scratch_file(path) as scratch:
        scratch.write_text("new")
        assert not path.exists()
    assert contents(tmp_path) == {"file": "new"}

    with pytest.raises(RuntimeError), files.scratch_file(path) as scratch:
        scratch.write_text("newer")
        raise RuntimeError
    assert contents(tmp_path) == {"file": "new"}


def test_a_file_is_read_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK_BYTES", 3)
    (tmp_path / "file").write_bytes(b"contents")

    assert list(files.read_chunks(tmp_path / "file")) == [b"con", b"ten", b"ts"]


def test_a_scratch_folder_takes_the_final_name_on_success(tmp_path):
    out = tmp_path / "parent" / "out"

    with files.scratch_folder(out) as scratch:
        (scratch / "sub").mkdir()
        (scratch / "sub" / "file").write_text("new")
        assert scratch.parent == out.parent
        assert not out.exists()

    assert contents(tmp_path) == {"parent/out/sub/file": "new"}
    assert os.listdir(out.parent) == ["out"]


def test_everything_in_a_scratch_folder_is_flushed_before_the_rename(tmp_path, events):
    with files.scratch_folder(tmp_path / "out") as scratch:
        (scratch / "sub").mkdir()
        (scratch / "sub" / "file").write_text("new")

    *flushed, renamed, parent = events
    assert sorted(flushed) == [("fsync", ".out.UNIQUE.writing"), ("fsync", "file"), ("fsync", "sub")]
    assert renamed == ("rename", ".out.UNIQUE.writing")
    assert parent == ("fsync", tmp_path.name)


def test_an_error_deletes_the_scratch_folder_and_keeps_the_former_one(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "file").write_text("former")

    with pytest.raises(RuntimeError), files.scratch_folder(out, replace=True) as scratch:
        (scratch / "file").write_text("new")
        raise RuntimeError

    assert contents(tmp_path) == {"out/file": "former"}
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_with_content_is_replaced_only_on_request(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "former").write_text("former")

    with pytest.raises(OSError, match="not empty"), files.scratch_folder(out) as scratch:
        (scratch / "new").write_text("new")
    assert contents(tmp_path) == {"out/former": "former"}

    with files.scratch_folder(out, replace=True) as scratch:
        (scratch / "new").write_text("new")
    assert contents(tmp_path) == {"out/new": "new"}


@pytest.mark.parametrize("name", [".out.writing", ".out.host-1-2-0123abcd.writing", ".out.host-1-2-0123abcd.deleting"])
def test_leftovers_of_a_killed_process_are_cleared(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "old").write_text("old")

    with files.scratch_folder(tmp_path / "out") as scratch:
        assert not any(scratch.iterdir())

    assert contents(tmp_path) == {}
    assert os.listdir(tmp_path) == ["out"]


def test_a_file_that_exists_is_never_written_in_place(tmp_path):
    """It may be the hard link of a file in a checkpoint."""
    path = tmp_path / "file"
    path.write_text("former")
    os.link(path, tmp_path / "link")

    with pytest.raises(FileExistsError):
        files.write_durably(path, b"new")
    with pytest.raises(FileExistsError):
        files.link_or_copy(tmp_path / "link", path)
    files.write_bytes_atomically(path, b"new")

    assert contents(tmp_path) == {"file": "new", "link": "former"}


def test_a_link_to_another_folder_stays_a_link(tmp_path):
    """As a stage's folder may be one to another disk, where the scratch folder must be, too."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "target").mkdir()
    (tmp_path / "disk" / "target" / "former").write_text("former")
    for name in ("target", "absent"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)

    for name in ("target", "absent"):
        with files.scratch_folder(tmp_path / name, replace=True) as scratch:
            assert scratch.parent == tmp_path / "disk"
            (scratch / "new").write_text("new")

    assert contents(tmp_path / "disk") == {"target/new": "new", "absent/new": "new"}
    assert all((tmp_path / name).is_symlink() for name in ("target", "absent"))


def test_nothing_is_written_through_a_link_to_a_file(tmp_path):
    """A run folder from elsewhere may have a link to any file of the user in place of a result."""
    (tmp_path / "precious").write_text("former")
    (tmp_path / "evaluation.json").symlink_to("precious")

    with pytest.raises(FileExistsError, match="is a link, and nothing is written through one; remove it"):
        files.write_bytes_atomically(tmp_path / "evaluation.json", b"new")

    assert contents(tmp_path) == {"evaluation.json": "former", "precious": "former"}


def test_something_else_than_a_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(FileExistsError, match="it is not a regular file"):
        files.write_bytes_atomically(tmp_path / "pipe", b"new")

    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("write", [files.scratch_file, files.scratch_folder, files.scratch_files])
def test_a_failure_leaves_no_folder_that_it_created(tmp_path, write):
    with pytest.raises(RuntimeError), write(tmp_path / "new" / "sub" / "out"):
        raise RuntimeError

    assert os.listdir(tmp_path) == []


def test_scratch_files_replace_those_of_their_names(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("former")
    (out / "other").write_text("other")

    with files.scratch_files(out) as scratch:
        (scratch / "a").write_text("new")
        (scratch / "b").write_text("new")
        assert contents(out)["a"] == "former"

    assert contents(out) == {"a": "new", "b": "new", "other": "other"}
    assert sorted(os.listdir(out)) == ["a", "b", "other"]


def test_an_error_replaces_none_of_several_files(tmp_path):
    (tmp_path / "a").write_text("former")

    with pytest.raises(RuntimeError), files.scratch_files(tmp_path) as scratch:
        (scratch / "a").write_text("new")
        raise RuntimeError

    assert contents(tmp_path) == {"a": "former"}
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("links", [True, False])
def test_a_linked_folder_has_the_same_content(tmp_path, monkeypatch, links):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_text("content")
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EXDEV, "no links")))

    files.link_folder(source, tmp_path / "target")

    assert contents(tmp_path / "target") == contents(source)
    assert (tmp_path / "target" / "sub" / "file").samefile(source / "sub" / "file") == links


@pytest.mark.parametrize(
    "make",
    [lambda path: path.symlink_to("precious"), lambda path: path.symlink_to(".."), os.mkfifo],
    ids=["link", "link to a folder", "FIFO"],
)
@pytest.mark.parametrize("place", ["", "sub"])
def test_only_files_and_folders_are_linked(tmp_path, make, place):
    """A link could give any file of the user a second name, or lead in circles; a FIFO would be waited for."""
    (tmp_path / "precious").write_text("former")
    source = tmp_path / "source"
    (source / place).mkdir(parents=True)
    make(source / place / "name")

    with pytest.raises(OSError, match="only files and folders are copied"):
        files.link_folder(source, tmp_path / "target")

    assert not (tmp_path / "target").exists()
    assert (tmp_path / "precious").stat().st_nlink == 1


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "file").write_text("content")
    (tmp_path / "source").symlink_to("disk")

    files.link_folder(tmp_path / "source", tmp_path / "target")

    assert contents(tmp_path / "target") == {"file": "content"}
    assert not (tmp_path / "target").is_symlink()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_while_a_folder_is_replaced_loses_neither(tmp_path, moment):
    """The child kills itself before or after the new folder gets the name."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("former")
    child = os.fork()
    if child == 0:
        rename = Path.rename

        def rename_and_die(path, target):
            is_new = str(path).endswith(".writing")
            if is_new and moment == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            rename(path, target)
            if is_new:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            Path.rename = rename_and_die
            with files.scratch_folder(tmp_path / "out", replace=True) as scratch:
                (scratch / "file").write_text("new")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    with locks.locked(tmp_path / "out"):
        pass

    assert contents(tmp_path) == {"out/file": "former" if moment == "before" else "new"}
    assert os.listdir(tmp_path) == ["out"]


def test_json_has_a_readable_and_an_ascii_form(tmp_path):
    value = {"name": "中", "list": [1]}

    files.write_json(tmp_path / "file", value)

    assert (tmp_path / "file").read_bytes() == '{\n "name": "中",\n "list": [\n  1\n ]\n}\n'.encode()
    assert files.encode_json(value) == b'{\n "name": "\\u4e2d",\n "list": [\n  1\n ]\n}'
    assert files.read_json(tmp_path / "file") == json.loads(files.encode_json(value)) == value


@pytest.mark.parametrize("content", [None, b"", b"[1]", b'{"a": ', b"\xff", b"[" * 100_000])
def test_anything_but_a_json_object_reads_as_an_empty_one(tmp_path, content):
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)

    assert files.read_json_object(path) == {}


def test_text_that_is_not_utf8_is_read_leniently(tmp_path):
    (tmp_path / "log").write_bytes("中\xff".encode("latin-1", "replace") + b"\xe4")

    assert files.read_text_leniently(tmp_path / "log") == "?\ufffd\ufffd"


def test_a_lone_surrogate_is_refused():
    assert files.count_utf8_bytes("中") == 3
    with pytest.raises(ValueError, match="lone surrogate"):
        files.count_utf8_bytes("\ud800")


def test_a_log_does_not_grow_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("former")
    (tmp_path / "info.log").symlink_to("precious")

    with open(tmp_path / "new.log", "a", opener=files.open_nofollow) as log:
        log.write("text")
    with pytest.raises(FileExistsError, match="is a link"):
        with open(tmp_path / "info.log", "a", opener=files.open_nofollow):
            pass

    assert contents(tmp_path) == {"info.log": "former", "new.log": "text", "precious": "former"}


def test_a_log_does_not_wait_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "info.log")

    with pytest.raises(FileExistsError, match="it is not a regular file"):
        with open(tmp_path / "info.log", "a", opener=files.open_nofollow):
            pass


@pytest.mark.parametrize("context", [files.scratch_file, files.scratch_folder, files.scratch_files])
def test_an_error_of_writing_names_what_the_user_knows(tmp_path, context):
    """Not the scratch path, and not nothing, as the error of a full disk does."""
    out = tmp_path / "out"
    for make in (
        lambda path: OSError(errno.ENOSPC, "full"),
        lambda path: OSError(errno.ENOSPC, "full", str(path / "a")),
    ):
        with pytest.raises(OSError, match="full") as caught, context(out) as scratch:
            raise make(scratch)
        assert caught.value.filename == str(out)
    with pytest.raises(OSError, match=r"^only a text$"), context(out):
        raise OSError("only a text")
    with pytest.raises(FileNotFoundError) as caught, context(out):
        (tmp_path / "source").read_bytes()
    assert caught.value.filename == str(tmp_path / "source")
