"""Reads a checkpoint: no file is used before its size and hash agree with the manifest."""

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from mindpangu.checkpoint.directory import checkpoints_sharing, is_iteration, latest_iteration
from mindpangu.checkpoint.fingerprint import Entry, Fingerprint
from mindpangu.checkpoint.manifest import MANIFEST, REMEDY, Manifest
from mindpangu.config import Config, load_saved_config
from mindpangu.errors import CheckpointError
from mindpangu.files import read_chunks
from mindpangu.pruned import TRIES, note_opened


class CheckpointReader:
    """One checkpoint folder.

    Attributes:
        folder: the checkpoint.
        step: the training step after which it was saved.
        files: name → size and hash.
        digest: hash of the manifest, and so of the whole checkpoint.
        was_named: True if `path` was this very checkpoint, False if it was the newest one of a folder.

    Args:
        path: an `iteration_…` folder; or a run folder or its `checkpoint` folder, to read its newest checkpoint.

    Raises:
        CheckpointError: there is no checkpoint, or its manifest cannot be read or has another format version.
    """

    def __init__(self, path: Path):
        self.folder, manifest = _open(path)
        self.was_named = self.folder == path
        self.step = manifest.step
        self.files = manifest.files
        self.digest = manifest.digest
        note_opened(self)

    def is_gone(self) -> bool:
        """True if the checkpoint was removed, or replaced by another one, after it was opened."""
        try:
            return Manifest.read(self.folder).digest != self.digest
        except CheckpointError:
            return True

    def read(self, name: str) -> bytes:
        """Returns the verified content of one file.

        Raises:
            CheckpointError: the file is not in the manifest, or is missing, truncated, or altered.
        """
        try:
            data = self._path(name).read_bytes()
        except OSError as error:
            raise self._unreadable(name, error) from None
        self._compare(name, Fingerprint.from_chunks([data]))
        return data

    def verify(self, name: str) -> Path:
        """Compares one file with the manifest, reading it in pieces, and returns its path. Raises like `read`."""
        try:
            self._compare(name, Fingerprint.from_chunks(read_chunks(self._path(name))))
        except OSError as error:
            raise self._unreadable(name, error) from None
        return self.folder / name

    def json(self, name: str) -> Any:
        """Returns the verified content of a JSON file. Raises CheckpointError like `read`, or if it is not JSON."""
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise CheckpointError(f"{self.folder / name} is not JSON: {error}") from None

    def config(self) -> Config:
        """Returns the resolved configuration that the checkpoint was saved with."""
        return load_saved_config(self.verify("config.yaml"))

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        """Returns the verified tensors of one file by name."""
        return decode_tensors(self.folder / name, self.read(name))

    def read_all(self, names: Iterable[str], use: Callable[[str, bytes], None], threads: int = 2) -> None:
        """Reads files in threads and passes each to `use(name, data)`. Only a few files are in memory at once."""
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(lambda name: use(name, self.read(name)), list(names)):
                pass

    def _path(self, name: str) -> Path:
        if name not in self.files:
            raise CheckpointError(f"{self.folder} has no {name}")
        return self.folder / name

    def _unreadable(self, name: str, error: OSError) -> CheckpointError:
        return CheckpointError(f"{self.folder / name} cannot be read: {error.strerror}; {REMEDY}")

    def _compare(self, name: str, found: Entry) -> None:
        entry = self.files[name]
        if found["bytes"] != entry["bytes"]:
            raise CheckpointError(
                f"{self.folder / name} has {found['bytes']} bytes, its manifest says {entry['bytes']}; "
                f"{self._remedy(name)}"
            )
        if found != entry:
            raise CheckpointError(
                f"{self.folder / name} was altered: its hash is not the one in the manifest; {self._remedy(name)}"
            )

    def _remedy(self, name: str) -> str:
        sharing = checkpoints_sharing(self.folder, name)
        if not sharing:
            return REMEDY
        return (
            f"{', '.join(folder.name for folder in sharing)} {'has' if len(sharing) == 1 else 'have'} the same file on "
            "disk (a hard link): copy it again from another disk, or remove this checkpoint and "
            f"{'that' if len(sharing) == 1 else 'those'} to continue from one without it"
        )


def decode_tensors(path: Path, data: bytes) -> dict[str, np.ndarray]:
    """Decodes the tensors of a safetensors file. Raises CheckpointError, which names `path`, if it is not one."""
    try:
        return load_tensors(data)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from None


def _open(path: Path) -> tuple[Path, Manifest]:
    """Returns a checkpoint's folder and its manifest."""
    for _ in range(TRIES):
        folder = _find(path)
        try:
            return folder, Manifest.read(folder)
        except CheckpointError:
            if folder == path or (folder / MANIFEST).exists():
                raise
        # it was pruned just now, so there is a newer one
    raise CheckpointError(f"the checkpoints in {path} are pruned faster than they can be opened; read a copy")


def _find(path: Path) -> Path:
    if (path / MANIFEST).is_file():
        return path
    for parent in (path, path / "checkpoint"):
        latest = latest_iteration(parent)
        if latest is not None:
            return latest
    newest = latest_iteration(path.parent)
    if newest is not None and not path.exists() and is_iteration(path):
        raise CheckpointError(
            f"there is no {path}: it was pruned or never saved. The newest checkpoint there is {newest.name}"
        )
    raise CheckpointError(f"there is no complete checkpoint in {path}")
