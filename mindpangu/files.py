"""Atomic, durable writes: files go to a scratch path, are flushed to disk with fsync, and are renamed into place.

A reader sees either the old content or all of the new, and a write that has returned survives a power failure. This
module also reads and writes JSON, and decodes text that may not be UTF-8. It imports only `locks` and `untrusted` from
mindpangu, so almost every other module may use it.

A file is never opened for writing in place, because it may have other names (hard links) in checkpoints: it is created,
or replaced by an atomic rename. Only logs and metrics are appended to. A path is locked while it is written
(`locks.py`), scratch paths have unique names, and the next write to a path removes the leftovers of killed processes.

A link in place of a folder is followed, because it may lead to another disk. A link in place of a file is refused: a
run folder from elsewhere may have links to any file of the user.
"""

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mindpangu.locks import delete, fsync, locked, scratch_path, unique_name
from mindpangu.untrusted import parse_json, read_bytes

Buffer = bytes | memoryview

CHUNK_BYTES = 1 << 22
"""Maximum size of the chunks that `read_chunks` yields."""

_FILE_WAIT_S = 60.0
"""Seconds to wait while another process replaces the same file, which takes milliseconds."""


# ---- Files -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def scratch_file(path: Path) -> Iterator[Path]:
    """Yields the path of a scratch file next to `path`, for the caller to create. Renames it to `path` on success;
    deletes it on error.

    Creates the folder if it does not exist. If two processes write the same file, one waits for the other.

    Raises:
        InUseError: another process has been writing the same file for a minute.
        OSError: the disk is full or cannot be written, or the path exists and is not a regular file.
    """
    if path.is_symlink():
        raise _is_a_link(path)
    with locked(path, wait=_FILE_WAIT_S) as destination:
        if destination.exists() and not destination.is_file():
            raise _is_no_file(path)
        scratch = scratch_path(destination, unique_name())
        try:
            yield scratch
            fsync(scratch)
            scratch.replace(destination)
            fsync_folder(destination.parent)
        except OSError as error:
            _let_name(error, path, scratch)
            raise
        finally:
            with contextlib.suppress(OSError):  # absent after a successful rename
                scratch.unlink()


def write_bytes_atomically(path: Path, data: bytes | Iterable[Buffer]) -> None:
    """Creates or replaces a file: even after a crash, `path` holds either its old content or all of `data`.

    Args:
        data: the content, in one piece or several.
    """
    with scratch_file(path) as scratch, open(scratch, "xb") as file:
        file.writelines([data] if isinstance(data, bytes) else data)


def write_text_atomically(path: Path, text: str) -> None:
    """Creates or replaces a UTF-8 text file; see `write_bytes_atomically`.

    Lone surrogates, which stand for the bytes of a file name that is not UTF-8, become escapes such as \\udcb2; JSON
    reads them back as the same name.
    """
    write_bytes_atomically(path, text.encode("utf-8", "backslashreplace"))


def write_durably(path: Path, data: bytes | Iterable[Buffer]) -> None:
    """Creates a file and returns once its content is on disk.

    This is for paths that nobody reads yet, such as those in a scratch folder. The file's name becomes durable with its
    folder (`fsync_folder`).

    Args:
        data: the content, in one piece or several.

    Raises:
        FileExistsError: the path exists. Its content stays as it is.
    """
    with open(path, "xb") as file:
        file.writelines([data] if isinstance(data, bytes) else data)
        file.flush()
        os.fsync(file.fileno())


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a file whose content never changes a second name, or copies it if the file system has no hard links.

    Raises:
        FileExistsError: `target` exists. It stays as it is.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        write_durably(target, read_chunks(source))


def open_nofollow(path: str, flags: int) -> int:
    """Opens a file that is appended to, such as a log; an `opener` for `open`. Raises OSError for a link, a FIFO, or a
    device."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _is_a_link(Path(path)) from None
        if error.errno == errno.ENXIO:  # a FIFO that nobody reads
            raise _is_no_file(Path(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _is_no_file(Path(path))
    return descriptor


def _let_name(error: OSError, destination: Path, scratch: Path) -> None:
    """Lets an error of writing name the destination, which the user knows, instead of nothing or the scratch path."""
    if error.strerror is None:  # it has only a text, which the name of a file would replace
        return
    if error.filename is None or str(error.filename).startswith(str(scratch)):
        error.filename = str(destination)


def _is_a_link(path: Path) -> OSError:
    return FileExistsError(
        errno.EEXIST,
        "is a link, and nothing is written through one; remove it, or give the name of the file itself",
        str(path),
    )


def _is_no_file(path: Path) -> OSError:
    return FileExistsError(errno.EEXIST, "is in the way: it is not a regular file", str(path))


def read_chunks(path: Path) -> Iterator[bytes]:
    """Yields the content of a file in pieces of at most `CHUNK_BYTES`."""
    with open(path, "rb") as file:
        yield from file_chunks(file)


def file_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Yields the rest of an open file in pieces of at most `CHUNK_BYTES`."""
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


# ---- Folders ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def scratch_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yields a scratch folder next to `out`. Renames it to `out` on success; deletes it on error.

    Files in it need no atomic writes of their own: all of them are flushed to disk before the rename. If `out` is a
    link, it stays one, and the folder that it leads to is written.

    Args:
        out: the final folder. Unless `replace` is set, it must be empty or not exist.
        replace: replace `out`, whatever is in it.

    Raises:
        InUseError: another process is writing `out`.
        OSError: the disk is full or cannot be written, or `out` is in the way.
    """
    with locked(out) as destination:
        if os.path.ismount(destination):  # a folder cannot be renamed to it
            raise OSError(errno.EBUSY, "is the root of a disk; use a folder in it", str(out))
        scratch = scratch_path(destination, unique_name())
        try:
            scratch.mkdir()
            yield scratch
            fsync_tree(scratch)
            if replace:
                replace_folder(scratch, destination)
            else:
                scratch.rename(destination)
                fsync_folder(destination.parent)
        except OSError as error:
            _let_name(error, out, scratch)
            raise
        finally:
            delete(scratch)


@contextlib.contextmanager
def scratch_files(folder: Path) -> Iterator[Path]:
    """Yields a scratch folder for files that will move to `folder`, which is created if it does not exist.

    On success each file replaces the file of the same name in `folder`, in the order of the names; on error none does.
    Other files in `folder` stay.

    Raises:
        InUseError: another process is writing to `folder` in this way.
        OSError: the disk is full or cannot be written.
    """
    with locked(folder / "files") as destination:  # inside the folder, because the folder may be on a disk of its own
        scratch = scratch_path(destination, unique_name())
        try:
            scratch.mkdir()
            yield scratch
            fsync_tree(scratch)
            for path in sorted(scratch.iterdir()):
                path.replace(destination.with_name(path.name))
            fsync_folder(destination.parent)
        except OSError as error:
            _let_name(error, folder, scratch)
            raise
        finally:
            delete(scratch)


def replace_folder(scratch: Path, destination: Path) -> None:
    """Renames a scratch folder to `destination`, durably, and then removes the folder that had this name.

    Linux can exchange two folders atomically on some file systems only, so for a moment nothing has the name. If the
    process is killed then, the next one that locks `destination` restores the former folder.
    """
    former = scratch.with_suffix(".former")
    replaces = os.path.lexists(destination)
    if replaces:
        destination.rename(former)
    try:
        scratch.rename(destination)
    except BaseException:
        if replaces and not os.path.lexists(destination):
            former.rename(destination)
        raise
    fsync_folder(destination.parent)
    if replaces:
        doomed = former.with_suffix(".deleting")
        former.rename(doomed)  # half a folder must not be restored
        delete(doomed)


def link_folder(source: Path, target: Path) -> None:
    """Copies a folder whose files never change to a new folder, with hard links if the file system supports them.

    The folder itself may be a link.

    Raises:
        OSError: the folder cannot be read or copied, or there is a link, a FIFO, or a device in it.
    """
    with scratch_folder(target) as scratch:
        for parent, folders, names in os.walk(source, onerror=_raise):
            copy = scratch / Path(parent).relative_to(source)
            for name in folders:
                _require_kind(Path(parent, name), stat.S_ISDIR)
                (copy / name).mkdir()
            for name in names:
                _require_kind(Path(parent, name), stat.S_ISREG)
                link_or_copy(Path(parent, name), copy / name)


def _raise(error: OSError) -> None:
    raise error


def _require_kind(path: Path, is_kind: Callable[[int], bool]) -> None:
    if not is_kind(path.lstat().st_mode):
        raise OSError(errno.EINVAL, "is a link, a FIFO, or a device; only files and folders are copied", str(path))


def fsync_folder(folder: Path) -> None:
    """Flushes the names in a folder to disk. Until then, a power failure may undo renames and the creation of files."""
    fsync(folder)


def fsync_tree(folder: Path) -> None:
    """Flushes a folder and everything in it to disk: contents and names."""
    for parent, _, names in os.walk(folder):
        for name in names:
            fsync(Path(parent, name))
        fsync(Path(parent))


# ---- JSON ------------------------------------------------------------------------------------------------------------


def encode_json(value: Any) -> bytes:
    """Encodes a value as JSON for files that only mindpangu reads: ASCII, indented by one space, no final newline.

    Digests are computed from these bytes, so the format must not change.
    """
    return json.dumps(value, indent=1).encode("ascii")


def write_json(path: Path, value: Any) -> None:
    """Creates or replaces a JSON file that people also read: UTF-8, indented by one space, with a final newline."""
    write_text_atomically(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file. Numbers may be infinite or NaN, like the losses of a training that diverged.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a regular file, too large, or not JSON (`untrusted.parse_json`).
    """
    return parse_json(read_bytes(path), allow_nan=True)


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object; returns an empty one if the file is absent, unreadable, or holds something else."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


# ---- Text that may not be UTF-8 --------------------------------------------------------------------------------------


def count_utf8_bytes(text: str) -> int:
    """Returns the size of a text in UTF-8. Raises ValueError for a lone surrogate, which JSON escapes can produce."""
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise ValueError("text holds a lone surrogate, which is not valid Unicode") from None


def read_text_leniently(path: Path) -> str:
    """Reads text that is only shown, such as a log: bytes that are not UTF-8 become U+FFFD (�)."""
    return path.read_text(encoding="utf-8", errors="replace")
