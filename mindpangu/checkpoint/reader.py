"""Reads a checkpoint: no file is used before its size and hash agree with the manifest."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mindpangu.checkpoint.directory import (
    checkpoints_sharing,
    incomplete_iterations,
    is_iteration,
    latest_iteration,
)
from mindpangu.checkpoint.fingerprint import Entry, Fingerprint
from mindpangu.checkpoint.manifest import MANIFEST, REMEDY, Manifest
from mindpangu.checkpoint.sizes import require_sizes
from mindpangu.checkpoint.tensor_file import decode_tensors
from mindpangu.config import Config, load_saved_config
from mindpangu.config.run_folder import RunFolder
from mindpangu.display import describe_error
from mindpangu.errors import CheckpointError
from mindpangu.files import file_chunks
from mindpangu.pruned import MAX_TRIES, note_opened_checkpoint
from mindpangu.untrusted import inside, open_file, parse_json


class CheckpointReader:
    """One checkpoint folder.

    Attributes:
        folder: the checkpoint.
        step: the training step after which it was saved.
        files: name → size and hash.
        digest: hash of the manifest, and so of the whole checkpoint.
        named_explicitly: True if `path` is this checkpoint itself, False if it is the newest one in `path`.

    Args:
        path: an `iteration_…` folder; or a run folder or its `checkpoint` folder, to read its newest checkpoint.

    Raises:
        CheckpointError: there is no checkpoint, or its manifest cannot be read or has another format version.
    """

    def __init__(self, path: Path):
        self.folder, manifest = _open(path)
        self.named_explicitly = self.folder == path
        self.step = manifest.step
        self.files = manifest.files
        self.digest = manifest.digest
        note_opened_checkpoint(self)

    def was_removed(self) -> bool:
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
        with self._open(name) as file:
            try:
                data = file.read()
            except (OSError, MemoryError) as error:
                raise self._unreadable(name, error) from None
        self._compare(name, Fingerprint.from_chunks([data]))
        return data

    def verify(self, name: str) -> Path:
        """Compares one file with the manifest, reading it in pieces, and returns its path. Raises like `read`."""
        with self._open(name) as file:
            try:
                found = Fingerprint.from_chunks(file_chunks(file))
            except OSError as error:
                raise self._unreadable(name, error) from None
        self._compare(name, found)
        return self.folder / name

    def require_size(self, name: str) -> Path:
        """Compares only the size of one file with the manifest, and returns its path. Raises like `read`."""
        with self._open(name):
            return self.folder / name

    def json(self, name: str) -> Any:
        """Returns the verified content of a JSON file. Raises CheckpointError like `read`, or if it is not JSON."""
        try:
            return parse_json(self.read(name))
        except ValueError as error:
            raise CheckpointError(f"{self.folder / name} cannot be read: {error}; {REMEDY}") from None

    def config(self, overrides: Mapping[str, str] | None = None) -> Config:
        """Returns the resolved configuration that the checkpoint was saved with.

        Args:
            overrides: overrides of keys, as in `load_config`.

        Raises:
            CheckpointError: like `read`; or the configuration describes a larger model than the files can hold
                (`require_sizes`).
            ConfigError: the configuration is invalid.
        """
        path = self.verify("config.yaml")
        config = load_saved_config(path)
        require_sizes(self, config)
        return load_saved_config(path, overrides) if overrides else config

    def local_settings(self) -> dict[str, str]:
        """Returns overrides for the keys that say where files go, for verbs that take their configuration from this
        checkpoint. The saved values belong to another place, perhaps to a stranger; see `RunFolder.settings_of_saved`.
        """
        return RunFolder.settings_of_saved(self.folder) | {"experts.storage_folder": ""}

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        """Returns the verified tensors of one file by name."""
        return decode_tensors(self.folder / name, self.read(name))

    def _open(self, name: str) -> BinaryIO:
        """Opens a regular file that has the size stated in the manifest."""
        if name not in self.files:
            raise CheckpointError(f"{self.folder} has no {name}")
        try:
            file = open_file(inside(self.folder, name))
        except (OSError, ValueError) as error:
            raise self._unreadable(name, error) from None
        try:
            self._compare_size(name, os.fstat(file.fileno()).st_size)
        except CheckpointError:
            file.close()
            raise
        return file

    def _unreadable(self, name: str, error: Exception) -> CheckpointError:
        return CheckpointError(f"{self.folder / name} cannot be read: {describe_error(error)}; {REMEDY}")

    def _compare_size(self, name: str, found: int | str) -> None:
        expected = self.files[name]["bytes"]
        if found != expected:
            raise CheckpointError(
                f"{self.folder / name} has {found} bytes, its manifest says {expected}; {self._remedy(name)}"
            )

    def _compare(self, name: str, found: Entry) -> None:
        self._compare_size(name, found["bytes"])
        if found != self.files[name]:
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


def _open(path: Path) -> tuple[Path, Manifest]:
    """Returns a checkpoint's folder and its manifest."""
    for _ in range(MAX_TRIES):
        folder = _find(path)
        try:
            return folder, Manifest.read(folder)
        except CheckpointError:
            if folder == path or (folder / MANIFEST).exists():
                raise
        # the checkpoint was pruned just now, so there is a newer one
    raise CheckpointError(f"the checkpoints in {path} are pruned faster than they can be opened; read a copy")


def _refuse_incomplete(parent: Path, latest: Path) -> None:
    """Raises CheckpointError if a later checkpoint than the newest complete one is damaged, instead of ignoring it."""
    damaged = incomplete_iterations(parent)
    if damaged:
        names = ", ".join(path.name for path in damaged)
        them = "it" if len(damaged) == 1 else "them"
        raise CheckpointError(
            f"{parent} has {names} without a manifest.json; copy {them} again, or remove {them} to use {latest.name}"
        )


def _find(path: Path) -> Path:
    if (path / MANIFEST).is_file():
        return path
    for parent in (path, path / "checkpoint"):
        latest = latest_iteration(parent)
        if latest is not None:
            _refuse_incomplete(parent, latest)
            return latest
    newest = latest_iteration(path.parent)
    if newest is not None and not path.exists() and is_iteration(path):
        raise CheckpointError(
            f"there is no {path}: it was pruned or never saved. The newest checkpoint in its folder is {newest.name}"
        )
    raise CheckpointError(f"there is no complete checkpoint in {path}")
