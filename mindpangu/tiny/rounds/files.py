"""The files of a training in rounds: the losses of the batches, and the sample of batches of each round.

    rounds/round_1_losses.safetensors   loss of every batch at the end of round 1; incomplete while it is computed
    rounds/round_2_sample.safetensors   batches of round 2, and the position of each in the training stream

Once its file is written, a sample is never drawn from its seed again: a resumed round reads its file. A batch is what
one step trains on; batch i is the batch of step i + 1 of round 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from mindpangu.data import LoaderState
from mindpangu.data.loader import SavedLoaderState
from mindpangu.errors import TrainingError
from mindpangu.tensor_format import require_tensors
from mindpangu.tiny.verified_file import VerifiedFile
from mindpangu.untrusted import DIGEST, Count, Range, read_record


def losses_file(rounds: Path, round: int) -> Path:
    """Returns the path of the losses at the end of a round."""
    return rounds / f"round_{round}_losses.safetensors"


def sample_file(rounds: Path, round: int) -> Path:
    """Returns the path of the sample of a round."""
    return rounds / f"round_{round}_sample.safetensors"


@dataclass(frozen=True)
class _LossesHeader:
    """The fields of `BatchLosses` other than tensors."""

    round: Annotated[int, Range(1, 1 << 31)]
    source: Literal["frozen", "recorded"]
    checkpoint: Annotated[str, DIGEST]
    num_batches: Annotated[int, Range(1, 1 << 48)]


@dataclass(frozen=True)
class _SampleHeader:
    """The fields of `RoundSample` other than tensors."""

    round: Annotated[int, Range(2, 1 << 31)]
    settings: dict[str, Any]
    losses: Annotated[str, DIGEST]
    checkpoint: Annotated[str, DIGEST]
    steps_before: Count
    begins_at: SavedLoaderState
    num_batches: Annotated[int, Range(1, 1 << 48)]


@dataclass(frozen=True, eq=False)
class BatchLosses(VerifiedFile):
    """The losses of the batches at the end of a round.

    Attributes:
        round: number of the round, from 1.
        source: "frozen" or "recorded", see `RoundSettings.losses`.
        checkpoint: digest of the checkpoint at the end of the round.
        num_batches: N, the number of batches of round 1.
        losses_J: float64, mean −log p over the targets of each batch; shorter than num_batches until all are computed.
    """

    kind = "a round's losses"
    format_version = "2"
    error = TrainingError
    remedy = "remove it to compute the losses again"

    round: int
    source: str
    checkpoint: str
    num_batches: int
    losses_J: npt.NDArray[np.float64]

    @property
    def is_complete(self) -> bool:
        """True if every batch has its loss."""
        return len(self.losses_J) == self.num_batches

    @classmethod
    def _from_content(cls, header: dict[str, Any], tensors: dict[str, np.ndarray]) -> "BatchLosses":
        saved = read_record(_LossesHeader, header)
        require_tensors(tensors, {"losses": ("F64", 1)})
        if len(tensors["losses"]) > saved.num_batches:
            raise ValueError(f"it has {len(tensors['losses'])} losses; allowed: <= {saved.num_batches} (num_batches)")
        return cls(**vars(saved), losses_J=tensors["losses"])

    def _header(self) -> dict[str, Any]:
        return {
            "round": self.round,
            "source": self.source,
            "checkpoint": self.checkpoint,
            "num_batches": self.num_batches,
        }

    def _tensors(self) -> dict[str, np.ndarray]:
        return {"losses": np.asarray(self.losses_J, np.float64)}


@dataclass(frozen=True, eq=False)
class RoundSample(VerifiedFile):
    """The batches of one round, from the second on.

    Attributes:
        round: number of the round.
        settings: name of an option or key → value, for the settings that the sample depends on.
        losses: digest of the losses that weighted the draw.
        checkpoint: digest of the checkpoint that the round starts from.
        steps_before: number of steps of all earlier rounds.
        begins_at: loader state of that checkpoint.
        num_batches: N, the number of batches of round 1.
        batches: int64, indices of the batches, ascending.
        states: state of the training stream before each of the batches.
    """

    kind = "a round's sample"
    format_version = "2"
    error = TrainingError
    remedy = "copy it again; a round that has begun cannot be resumed without it"

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
        """Last training step of the round."""
        return self.steps_before + len(self)

    @classmethod
    def _from_content(cls, header: dict[str, Any], tensors: dict[str, np.ndarray]) -> "RoundSample":
        saved = read_record(_SampleHeader, header)
        columns = {name: values for name, values in tensors.items() if name != "batches"}
        phases = {name: ("I64", 2) for name in ("phase_began",) if name in columns}
        require_tensors(tensors, {"batches": ("I64", 1), "samples_taken": ("I64", 2), **phases})
        batches = tensors["batches"]
        if any(len(values) != len(batches) for values in columns.values()):
            raise ValueError("its tensors have different numbers of batches")
        if not len(batches) or (np.diff(batches, prepend=-1) <= 0).any() or batches[-1] >= saved.num_batches:
            raise ValueError(f"its batches do not ascend from 0 to num_batches {saved.num_batches}")
        states: list[LoaderState] = [
            {name: values[index].tolist() for name, values in columns.items()} for index in range(len(batches))
        ]
        return cls(**vars(saved) | {"begins_at": saved.begins_at.to_state()}, batches=batches, states=states)

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
