"""Atomic file writes. ascend_ops must not import mindpangu, so this is a small version of mindpangu/files.py.

A link in place of a file is followed here: none of these files comes from elsewhere.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def scratch_file(path: Path) -> Iterator[Path]:
    """Yields the path of a scratch file next to `path`, for the caller to create. Renames it to `path` on success;
    deletes it on error.

    The name of the scratch file is unique. If two processes write the same file, the last one wins.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "is in the way: it is not a regular file; remove or rename it", str(path))
    scratch = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.writing")
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)  # absent after a successful rename


def write_text(path: Path, text: str) -> None:
    """Creates or replaces a UTF-8 text file."""
    with scratch_file(path) as scratch, open(scratch, "x", encoding="utf-8") as file:
        file.write(text)


def remove_leftovers(path: Path) -> None:
    """Removes the scratch files of `path` that killed processes left. No other process may be writing `path`."""
    for scratch in path.parent.glob(f".{path.name}.*.writing"):
        scratch.unlink(missing_ok=True)
