"""Compares the model that a checkpoint's configuration describes with the sizes of the checkpoint's files.

A few words in a configuration can ask for any amount of memory; file sizes cannot lie.
"""

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from mindpangu.checkpoint.experts import expert_file_name, shards_of_experts
from mindpangu.checkpoint.fingerprint import Entry
from mindpangu.config import Config
from mindpangu.domains import build_domains
from mindpangu.errors import CheckpointError
from mindpangu.model.parameter_count import count_parameters, in_words

_PARAMETER_BYTES = 4  # checkpoints hold float32
_TRIES = 8


class Files(Protocol):
    """The files of a checkpoint; see `CheckpointReader`."""

    folder: Path
    files: dict[str, Entry]

    def require_size(self, name: str) -> Path: ...


def require_sizes(reader: Files, config: Config) -> None:
    """Raises CheckpointError if a configuration describes a larger model than the files of its checkpoint can hold.

    This must be called before memory is allocated for the model; the exact shape of a tensor is compared when it is
    read. The sizes in the manifest are compared with the files themselves: with all dense files, and with those of one
    expert, because all experts have the same shapes.
    """
    count = count_parameters(config)
    dense = [name for name in reader.files if name.startswith("dense_")]
    _require(reader, "dense parameters", count.total - count.experts, _bytes_of(reader, dense) // _PARAMETER_BYTES)
    num_experts = config.model.rre_layers * sum(domain.num_experts for domain in build_domains(config))
    if num_experts:
        saved = shards_of_experts(reader.files)
        _require(reader, "experts", num_experts, len(saved))
        held = _bytes_of_an_expert(reader, saved) // _PARAMETER_BYTES
        _require(reader, "parameters per expert", count.experts // num_experts, held)


def _bytes_of(reader: Files, names: Iterable[str]) -> int:
    """Returns the total size of files. Raises CheckpointError if one is missing, or has another size than stated."""
    total = 0
    for name in names:
        reader.require_size(name)
        total += int(reader.files[name]["bytes"])
    return total


def _bytes_of_an_expert(reader: Files, saved: Mapping[tuple[int, str, int], int]) -> int:
    """Returns the size of the first undamaged expert among a few, so that a verb can still leave out or replace a
    damaged one.

    Raises:
        CheckpointError: all of them are damaged.
    """
    failure = None
    for expert, num_shards in itertools.islice(saved.items(), _TRIES):
        try:
            return _bytes_of(reader, (expert_file_name(*expert, (shard, num_shards)) for shard in range(num_shards)))
        except CheckpointError as error:
            failure = failure or error
    assert failure is not None, "there are experts"
    raise failure


def _require(reader: Files, unit: str, described: int, held: int) -> None:
    if described > held:
        raise CheckpointError(
            f"{reader.folder}: config.yaml describes {in_words(described)} {unit}, but the files of this checkpoint "
            f"hold at most {in_words(held)}; copy the checkpoint again, or use another"
        )
