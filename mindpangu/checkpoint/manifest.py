"""The manifest of a checkpoint: format version, step, and size and hash of every other file.

The manifest is written last: a folder that has one is a complete checkpoint.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mindpangu.checkpoint.fingerprint import Entry
from mindpangu.errors import CheckpointError
from mindpangu.files import encode_json

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
REMEDY = "copy it again, or remove this checkpoint to continue from an earlier one"
"""Remedy for a checkpoint file that cannot be read."""


@dataclass(frozen=True)
class Manifest:
    """A manifest that has been read.

    Attributes:
        step: the training step after which the checkpoint was saved.
        files: name → size and hash.
        digest: hash of the manifest's bytes, and so of the whole checkpoint.
    """

    step: int
    files: dict[str, Entry]
    digest: str

    @staticmethod
    def read(folder: Path) -> "Manifest":
        """Reads the manifest of a checkpoint folder.

        Raises:
            CheckpointError: it is missing or damaged, or has another format version.
        """
        path = folder / MANIFEST
        try:
            data = path.read_bytes()
            content = json.loads(data)
            files: dict[str, Entry] = {
                name: {"bytes": entry["bytes"], "blake2b": entry["blake2b"]} for name, entry in content["files"].items()
            }
            step: int = content["step"]
            version = content["format_version"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read: {error!r}; {REMEDY}") from None
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{folder} has checkpoint format {version}; this version of mindpangu reads {FORMAT_VERSION}"
            )
        return Manifest(step, files, hashlib.blake2b(data, digest_size=16).hexdigest())


def encode_manifest(step: int, files: Mapping[str, Entry]) -> bytes:
    """Encodes the manifest of a new checkpoint, files sorted by name: equal checkpoints have equal manifests."""
    return encode_json({"format_version": FORMAT_VERSION, "step": step, "files": dict(sorted(files.items()))})
