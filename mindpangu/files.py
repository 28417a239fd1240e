"""Atomic, durable writes: files go to a scratch path, are flushed to disk with fsync, and are renamed into place.

A reader sees either the old content or all of the new, and a write that has returned survives a power failure. This
module also reads and writes JSON, and decodes text that may not be UTF-8. It imports nothing from mindpangu but
`untrusted.py`, so every other module may use it.

Scratch paths have fixed names, so only one process at a time may write a path; callers that could race hold a lock. A
write first clears the leftovers of a killed process.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mindpangu.untrusted import parse_json, read_bytes

Buffer = bytes | memoryview

CHUNK_BYTES = 1 << 22
"""Maximum size of the chunks that `read_chunks` yields."""


# ---- Files -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def scratch_file(path: Path) -> Iterator[Path]:
    """Yields the path of a scratch file next to `path`, for the caller to write. Renames it to `path` on success;
    deletes it on error."""
    scratch = _scratch_path(path)
    try:
        yield scratch
        _fsync(scratch)
        scratch.replace(path)
    finally:
        with contextlib.suppress(OSError):  # absent after a successful rename
            scratch.unlink()
    fsync_folder(path.parent)


def write_bytes_atomically(path: Path, data: bytes | Iterable[Buffer]) -> None:
    """Creates or replaces a file: even after a crash, `path` holds either its old content or all of `data`.

    Args:
        data: the content, in one piece or several.
    """
    with scratch_file(path) as scratch, open(scratch, "wb") as file:
        file.writelines([data] if isinstance(data, bytes) else data)


def write_text_atomically(path: Path, text: str) -> None:
    """Creates or replaces a UTF-8 text file; see `write_bytes_atomically`."""
    write_bytes_atomically(path, text.encode("utf-8"))


def write_durably(path: Path, data: bytes | Iterable[Buffer]) -> None:
    """Writes a file in place and returns once its content is on disk.

    For paths that nobody reads yet, such as those in a scratch folder. The file's name becomes durable with its folder
    (`fsync_folder`).

    Args:
        data: the content, in one piece or several.
    """
    with open(path, "wb") as file:
        file.writelines([data] if isinstance(data, bytes) else data)
        file.flush()
        os.fsync(file.fileno())


def read_chunks(path: Path) -> Iterator[bytes]:
    """Yields the content of a file in pieces of at most `CHUNK_BYTES`."""
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


# ---- Folders ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def scratch_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yields a scratch folder next to `out`. Renames it to `out` on success; deletes it on error.

    Files in it need no atomic writes of their own: all of them are flushed to disk before the rename.

    Args:
        out: the final folder; it must not exist, or be empty.
        replace: removes `out` and everything in it just before the rename.

    Raises:
        OSError: the disk is full or cannot be written, or `out` is in the way.
    """
    scratch = _scratch_path(out)
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        yield scratch
        fsync_tree(scratch)
        if replace:
            shutil.rmtree(out, ignore_errors=True)
        scratch.rename(out)
        fsync_folder(out.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def scratch_files(folder: Path) -> Iterator[Path]:
    """Yields a scratch folder for files that will move to `folder`, which is created if it does not exist.

    On success each file replaces the file of the same name in `folder`, in order of name; on error none does. Other
    files in `folder` stay.
    """
    scratch = folder / ".writing"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        yield scratch
        fsync_tree(scratch)
        for path in sorted(scratch.iterdir()):
            path.replace(folder / path.name)
        fsync_folder(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def link_folder(source: Path, target: Path) -> None:
    """Copies a folder whose files never change, with hard links if the file system supports them."""

    def link(source_file: str, target_file: str) -> None:
        try:
            Path(target_file).hardlink_to(source_file)
        except OSError:
            shutil.copy2(source_file, target_file)

    with scratch_folder(target) as scratch:
        shutil.copytree(source, scratch, copy_function=link, dirs_exist_ok=True)


def fsync_folder(folder: Path) -> None:
    """Makes the names in a folder durable. Before that, a power failure may undo a rename or the creation of a file."""
    _fsync(folder)


def fsync_tree(folder: Path) -> None:
    """Makes a folder and everything in it durable: contents and names."""
    for parent, _, names in os.walk(folder):
        for name in names:
            _fsync(Path(parent, name))
        _fsync(Path(parent))


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
    """Reads a JSON file. Numbers may be infinite or NaN, as the losses of a training that diverged.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no regular file, too large, or not JSON (`untrusted.parse_json`).
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


def _scratch_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.writing")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
