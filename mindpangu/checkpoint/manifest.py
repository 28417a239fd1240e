"""The manifest of a checkpoint: format version, step, and size and hash of every other file.

The manifest is written last: a folder that has one is a complete checkpoint. Reading it validates the names of all
other files: every entry must be the name of a file that a checkpoint may have, so no name leads out of the folder.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mindpangu.checkpoint.fingerprint import Entry
from mindpangu.display import describe_error, short_repr
from mindpangu.errors import CheckpointError
from mindpangu.files import encode_json
from mindpangu.untrusted import DIGEST, JSON_LIMIT, Range, check_name, parse_json, read_bytes, read_record

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
REMEDY = "copy it again, or remove this checkpoint to continue from an earlier one"
"""Remedy for a checkpoint file that cannot be read."""

ITERATION = re.compile(r"iteration_([0-9]{8,13})")
"""Name of the folder of a checkpoint; `directory.iteration_folder` builds it."""

EXPERT_FILE = re.compile(
    r"experts/rre_(?P<layer>[0-9]{2,5})\.(?P<domain>[^/.]+)\.(?P<index>[0-9]{3,5})"
    r"(?:\.[0-9]{1,5}_of_(?P<shards>[0-9]{1,5}))?\.safetensors"
)
"""Name of the file of an expert, or of one of its shards; `experts.expert_file_name` builds it."""

_NO_LIMIT = 1 << 62
# pattern of a file's name → its maximum size in bytes
_FILES = {
    re.compile(r"config\.yaml"): JSON_LIMIT,
    re.compile(r"state\.json"): JSON_LIMIT,
    re.compile(r"dense_[0-9]{5}_of_[0-9]{5}\.safetensors"): _NO_LIMIT,
    re.compile(r"routing/(?P<domain>[^/.]+)\.safetensors"): 1 << 31,
    re.compile(r"tokenizer/(?P<vocabulary>[^/]+)\.model"): 1 << 30,
    EXPERT_FILE: _NO_LIMIT,
}

Step = Annotated[int, Range(0, 10**12)]
"""The type of a field that is a training step."""


@dataclass(frozen=True)
class _SavedEntry:
    """The entry of one file in manifest.json."""

    bytes: Annotated[int, Range(0, _NO_LIMIT)]
    blake2b: Annotated[str, DIGEST]


@dataclass(frozen=True)
class _SavedManifest:
    """The content of manifest.json."""

    format_version: int
    step: Step
    files: dict[str, _SavedEntry]


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
            CheckpointError: it is missing or damaged, has another format version, or names a file that is not
                part of a checkpoint.
        """
        path = folder / MANIFEST
        try:
            data = read_bytes(path)
            content = parse_json(data)
            version = content.get("format_version") if isinstance(content, dict) else None
            if type(version) is not int or version == FORMAT_VERSION:
                saved = read_record(_SavedManifest, content)
                _require_step_of_folder(folder.absolute().name, saved.step)
                for name, entry in saved.files.items():
                    _check_entry(name, entry.bytes)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {describe_error(error)}; {REMEDY}") from None
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{folder} has checkpoint format {short_repr(version)}; this version of mindpangu reads "
                f"{FORMAT_VERSION}"
            )
        files: dict[str, Entry] = {
            name: {"bytes": entry.bytes, "blake2b": entry.blake2b} for name, entry in saved.files.items()
        }
        return Manifest(saved.step, files, hashlib.blake2b(data, digest_size=16).hexdigest())


def _require_step_of_folder(name: str, step: int) -> None:
    """Raises ValueError if a folder is named after another step, because it was renamed."""
    match = ITERATION.fullmatch(name)
    if match is not None and int(match[1]) != step:
        raise ValueError(f"step is {step}; allowed: {int(match[1])}, the step in the name of the folder")


def _check_entry(name: str, num_bytes: int) -> None:
    """Raises ValueError unless a manifest may have an entry of this name and size."""
    for pattern, limit in _FILES.items():
        match = pattern.fullmatch(name)
        if match is None:
            continue
        for kind in ("domain", "vocabulary"):
            if kind in pattern.groupindex:
                check_name(kind, match[kind])
        if num_bytes > limit:
            raise ValueError(f"files.{name}.bytes is {num_bytes:,}; allowed: <= {limit:,}")
        return
    raise ValueError(f"files has the entry {short_repr(name)}, which is not a file of a checkpoint")


def encode_manifest(step: int, files: Mapping[str, Entry]) -> bytes:
    """Encodes the manifest of a new checkpoint, files sorted by name: equal checkpoints have equal manifests."""
    return encode_json({"format_version": FORMAT_VERSION, "step": step, "files": dict(sorted(files.items()))})
