"""Files that are on the disk when the call returns."""

import os
from collections.abc import Iterable
from pathlib import Path


def write_text_atomically(path: Path, text: str) -> None:
    """Replaces a small file in one move."""
    write_atomically(path, text.encode())


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Replaces a file, whose content comes whole or in pieces, in one move."""
    scratch = path.with_name(f".{path.name}.writing")
    write_durably(scratch, data)
    scratch.replace(path)


def write_durably(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Returns when the content, whole or in pieces, is on the disk."""
    with open(path, "wb") as file:
        file.writelines([data] if isinstance(data, bytes) else data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """A rename or a new name is durable only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
