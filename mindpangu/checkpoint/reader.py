"""Reading a checkpoint: nothing is used before its size and hash agree with the manifest."""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from mindpangu.checkpoint.directory import MANIFEST, latest_iteration, sharing
from mindpangu.checkpoint.fingerprint import Entry, Fingerprint, read_chunks
from mindpangu.checkpoint.writer import FORMAT_VERSION
from mindpangu.config import Config, load_saved_config
from mindpangu.errors import CheckpointError

_REMEDY = "copy it again, or remove this checkpoint to go on from an earlier one"


class CheckpointReader:
    """One checkpoint folder.

    Attributes:
        folder, step: where it lies and after which step it was saved.
        files: name → size and hash. digest: hash of the manifest, and so of everything.

    Args:
        path: an `iteration_…` folder, or a run folder or its `checkpoint` folder, whose newest one is taken.

    Raises:
        CheckpointError: there is none, or its manifest cannot be read or is of another format version.
    """

    def __init__(self, path: Path):
        self.folder = _find(path)
        try:
            data = (self.folder / MANIFEST).read_bytes()
            manifest = json.loads(data)
            self.files: dict[str, Entry] = {
                name: {"bytes": entry["bytes"], "blake2b": entry["blake2b"]}
                for name, entry in manifest["files"].items()
            }
            self.step: int = manifest["step"]
            version = manifest["format_version"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{self.folder / MANIFEST} cannot be read: {error!r}; {_REMEDY}") from None
        self.digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{self.folder} has checkpoint format {version}; this version of mindpangu reads {FORMAT_VERSION}"
            )

    def read(self, name: str) -> bytes:
        """The verified content of one file.

        Raises:
            CheckpointError: not in the manifest, missing, truncated or altered.
        """
        try:
            data = self._path(name).read_bytes()
        except OSError as error:
            raise self._unreadable(name, error) from None
        self._compare(name, Fingerprint.from_chunks([data]))
        return data

    def verify(self, name: str) -> Path:
        """Where one file lies, whose content was read in pieces and is right. Raises like `read`."""
        try:
            self._compare(name, Fingerprint.from_chunks(read_chunks(self._path(name))))
        except OSError as error:
            raise self._unreadable(name, error) from None
        return self.folder / name

    def _path(self, name: str) -> Path:
        if name not in self.files:
            raise CheckpointError(f"{self.folder} has no {name}")
        return self.folder / name

    def _unreadable(self, name: str, error: OSError) -> CheckpointError:
        return CheckpointError(f"{self.folder / name} cannot be read: {error.strerror}; {_REMEDY}")

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
        linked = sharing(self.folder, name)
        if not linked:
            return _REMEDY
        return (
            f"{', '.join(folder.name for folder in linked)} {'has' if len(linked) == 1 else 'have'} the same file on "
            "disk (a hard link): copy it again from another disk, or remove this checkpoint and "
            f"{'that' if len(linked) == 1 else 'those'} to go on from one without it"
        )

    def json(self, name: str) -> Any:
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise CheckpointError(f"{self.folder / name} is not JSON: {error}") from None

    def config(self) -> Config:
        """The resolved configuration that the checkpoint was saved with."""
        return load_saved_config(self.verify("config.yaml"))

    def tensors(self, name: str) -> dict[str, np.ndarray]:
        return decode_tensors(self.folder / name, self.read(name))

    def read_all(self, names: Iterable[str], use, threads: int = 2) -> None:
        """Reads files in threads and hands each to `use(name, data)`; memory stays at a few files."""
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(lambda name: use(name, self.read(name)), list(names)):
                pass


def decode_tensors(path: Path, data: bytes) -> dict[str, np.ndarray]:
    try:
        return load_tensors(data)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from None


def _find(path: Path) -> Path:
    if (path / MANIFEST).is_file():
        return path
    for parent in (path, path / "checkpoint"):
        latest = latest_iteration(parent)
        if latest is not None:
            return latest
    raise CheckpointError(f"there is no complete checkpoint in {path}")
