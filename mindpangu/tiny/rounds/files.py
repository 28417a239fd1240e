"""What the rounds of a training keep on disk: the losses of the batches, and which of them a round consists of.

    rounds/round_1_losses.safetensors   loss of every batch at the end of round 1; shorter while it is being computed
    rounds/round_2_sample.safetensors   the batches of round 2, and where each lies in the training stream

A sample is never drawn again from its seed once it is here: a round goes on with what is in its file. Each file has one
JSON header with a digest over all of it. A batch is what one step trains on; batch i is that of step i + 1 of round 1.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as encode_tensors

from mindpangu.checkpoint.durable import write_atomically
from mindpangu.data import LoaderState
from mindpangu.errors import TrainingError

FORMAT_VERSION = "1"
_HEADER = "rounds"
_File = TypeVar("_File", bound="_RoundFile")


def losses_file(rounds: Path, round: int) -> Path:
    """Of the losses at the end of a round."""
    return rounds / f"round_{round}_losses.safetensors"


def sample_file(rounds: Path, round: int) -> Path:
    """Of the batches that a round consists of."""
    return rounds / f"round_{round}_sample.safetensors"


class _RoundFile(ABC):
    """A safetensors file that knows when it was altered; a kind of it says what is in its header and its tensors."""

    kind: ClassVar[str]
    remedy: ClassVar[str]  # of a file that cannot be read

    @cached_property
    def digest(self) -> str:
        """BLAKE2 hash over header and content, 32 hex digits."""
        return _digest({"kind": self.kind, **self._header()}, self._tensors())

    def save(self, path: Path) -> None:
        header = {"kind": self.kind, **self._header()}
        signed = {"format_version": FORMAT_VERSION, "digest": self.digest, "content": header}
        write_atomically(path, encode_tensors(self._tensors(), {_HEADER: json.dumps(signed, sort_keys=True)}))

    @classmethod
    def load(cls: type[_File], path: Path) -> _File:
        """Raises TrainingError: cut off, altered, or of another format."""
        try:
            with safe_open(path, framework="numpy") as file:
                signed = json.loads((file.metadata() or {})[_HEADER])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            version, digest, header = signed["format_version"], signed["digest"], signed["content"]
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise TrainingError(f"{path} is not a whole file of a round's {cls.kind} ({error}); {cls.remedy}") from None
        if version != FORMAT_VERSION:
            raise TrainingError(
                f"{path} has format {version} of rounds; this version of mindpangu reads {FORMAT_VERSION}"
            )
        if digest != _digest(header, tensors) or header["kind"] != cls.kind:
            raise TrainingError(
                f"{path} was altered: its content does not match the digest in its header; {cls.remedy}"
            )
        return cls._of({name: value for name, value in header.items() if name != "kind"}, tensors)

    @classmethod
    @abstractmethod
    def _of(cls: type[_File], header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> _File: ...

    @abstractmethod
    def _header(self) -> dict[str, Any]: ...

    @abstractmethod
    def _tensors(self) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True, eq=False)
class BatchLosses(_RoundFile):
    """Losses at the end of a round.

    Attributes:
        round: its number, from 1. source: "frozen" or "recorded", see `RoundSettings.losses`.
        checkpoint: digest of the checkpoint at its end.
        num_batches: N, of round 1.
        losses_N: float64, mean −log p over the targets of each batch; fewer than N while it is being computed.
    """

    kind = "losses"
    remedy = "remove it to have the losses computed again"

    round: int
    source: str
    checkpoint: str
    num_batches: int
    losses_N: npt.NDArray[np.float64]

    @property
    def is_whole(self) -> bool:
        return len(self.losses_N) == self.num_batches

    @classmethod
    def _of(cls, header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> "BatchLosses":
        return cls(**header, losses_N=tensors["losses"])

    def _header(self) -> dict[str, Any]:
        return {
            "round": self.round,
            "source": self.source,
            "checkpoint": self.checkpoint,
            "num_batches": self.num_batches,
        }

    def _tensors(self) -> dict[str, np.ndarray]:
        return {"losses": np.asarray(self.losses_N, np.float64)}


@dataclass(frozen=True, eq=False)
class RoundSample(_RoundFile):
    """The batches of one round, from the second on.

    Attributes:
        round: its number. settings: what decided it, by the name of the option or key.
        losses, checkpoint: digests of the losses that it was drawn by and of the checkpoint that it goes on from.
        steps_before: steps of all rounds before it. begins_at: the loader state of that checkpoint.
        num_batches: N, of round 1.
        batches: int64, ascending. states: the training stream's state before each of them.
    """

    kind = "sample"
    remedy = "copy it again; a round that has begun cannot go on without it"

    round: int
    settings: Mapping[str, Any]
    losses: str
    checkpoint: str
    steps_before: int
    begins_at: LoaderState
    num_batches: int
    batches: npt.NDArray[np.int64]
    states: list[LoaderState]

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def last_step(self) -> int:
        """The step of the training at which the round ends."""
        return self.steps_before + len(self)

    @classmethod
    def _of(cls, header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> "RoundSample":
        rows = {name: values.tolist() for name, values in tensors.items() if name != "batches"}
        states = [{name: values[place] for name, values in rows.items()} for place in range(len(tensors["batches"]))]
        return cls(**header, batches=tensors["batches"], states=states)

    def _header(self) -> dict[str, Any]:
        return {
            "round": self.round,
            "settings": dict(self.settings),
            "losses": self.losses,
            "checkpoint": self.checkpoint,
            "steps_before": self.steps_before,
            "begins_at": dict(self.begins_at),
            "num_batches": self.num_batches,
        }

    def _tensors(self) -> dict[str, np.ndarray]:
        states = {name: np.array([state[name] for state in self.states], np.int64) for name in self.states[0]}
        return {"batches": np.asarray(self.batches, np.int64), **states}


def _digest(header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    total = hashlib.blake2b(json.dumps(header, sort_keys=True).encode(), digest_size=16)
    for name, values in sorted(tensors.items()):
        total.update(json.dumps([name, values.dtype.str, values.shape]).encode())
        total.update(np.ascontiguousarray(values).tobytes())
    return total.hexdigest()
