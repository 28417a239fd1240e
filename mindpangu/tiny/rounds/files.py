"""What the rounds of a training keep on disk: the losses of the batches, and which of them a round consists of.

    rounds/round_1_losses.safetensors   loss of every batch at the end of round 1; shorter while it is being computed
    rounds/round_2_sample.safetensors   the batches of round 2, and where each lies in the training stream

A sample is never drawn again from its seed once it is here: a round goes on with what is in its file. A batch is what
one step trains on; batch i is that of step i + 1 of round 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mindpangu.data import LoaderState
from mindpangu.errors import TrainingError
from mindpangu.tiny.verified_file import VerifiedFile


def losses_file(rounds: Path, round: int) -> Path:
    """Of the losses at the end of a round."""
    return rounds / f"round_{round}_losses.safetensors"


def sample_file(rounds: Path, round: int) -> Path:
    """Of the batches that a round consists of."""
    return rounds / f"round_{round}_sample.safetensors"


@dataclass(frozen=True, eq=False)
class BatchLosses(VerifiedFile):
    """Losses at the end of a round.

    Attributes:
        round: its number, from 1. source: "frozen" or "recorded", see `RoundSettings.losses`.
        checkpoint: digest of the checkpoint at its end.
        num_batches: N, of round 1.
        losses_N: float64, mean −log p over the targets of each batch; fewer than N while it is being computed.
    """

    kind, format_version, error = "a round's losses", "2", TrainingError
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
class RoundSample(VerifiedFile):
    """The batches of one round, from the second on.

    Attributes:
        round: its number. settings: what decided it, by the name of the option or key.
        losses, checkpoint: digests of the losses that it was drawn by and of the checkpoint that it goes on from.
        steps_before: steps of all rounds before it. begins_at: the loader state of that checkpoint.
        num_batches: N, of round 1.
        batches: int64, ascending. states: the training stream's state before each of them.
    """

    kind, format_version, error = "a round's sample", "2", TrainingError
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
