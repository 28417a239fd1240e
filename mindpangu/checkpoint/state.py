"""The file state.json of a checkpoint: the state of the training, or the verb that made the checkpoint."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from mindpangu.checkpoint.manifest import REMEDY, Step
from mindpangu.checkpoint.reader import CheckpointReader
from mindpangu.data import LoaderState
from mindpangu.data.loader import SavedLoaderState
from mindpangu.display import short_text
from mindpangu.errors import CheckpointError
from mindpangu.untrusted import DIGEST, Count, Range, read_record

STATE_FILE = "state.json"


@dataclass(frozen=True)
class SavedSpikes:
    """The window of `train.spikes.SpikeGuard`."""

    loss: list[float]
    global_norm: list[float]


@dataclass(frozen=True)
class SavedLossScale:
    """The state of `train.loss_scale.LossScale`."""

    value: Annotated[float, Range(1, 2**32)]
    steps_without_overflow: Count


@dataclass(frozen=True)
class _Content:
    """The content of state.json."""

    step: Step
    updates: Count
    loader: SavedLoaderState | None
    loaded: Annotated[str, DIGEST] | None
    digests: dict[str, str]
    spikes: SavedSpikes | None = None
    loss_scale: SavedLossScale | None = None
    made_by: dict[str, Any] | None = None


@dataclass(frozen=True)
class SavedState:
    """The state of a training after a step.

    Attributes:
        step: last finished step.
        updates: number of updates so far; skipped steps have none.
        loader: position in the data; None if the checkpoint was not made by a training.
        loaded: digest of the checkpoint whose weights the training started from, if any.
        digests: hashes of data, routing table, and tokenizers (`compatibility.input_digests`).
        spikes: window of the spike guard.
        loss_scale: state of the loss scale; None in fp32 checkpoints of earlier versions.
        made_by: the verb that made the checkpoint, if it was not a training.
    """

    step: int
    updates: int
    loader: LoaderState | None
    loaded: str | None
    digests: dict[str, str]
    spikes: dict[str, list[float]]
    loss_scale: dict[str, float] | None
    made_by: str

    @staticmethod
    def read(reader: CheckpointReader) -> "SavedState":
        """Reads the state of a checkpoint.

        Raises:
            CheckpointError: the file is missing, altered, or damaged, or does not belong to this checkpoint.
        """
        try:
            content = read_record(_Content, reader.json(STATE_FILE))
            if content.step != reader.step:
                raise ValueError(f"step is {content.step}; allowed: {reader.step}, the step of the checkpoint")
            if content.updates > content.step:
                raise ValueError(f"updates is {content.updates}; allowed: <= {content.step}, one per step")
            if content.loader is not None and content.spikes is None:
                raise ValueError("spikes is missing; a training needs it to continue")
        except ValueError as error:
            raise CheckpointError(f"{reader.folder / STATE_FILE} cannot be used: {error}; {REMEDY}") from None
        return SavedState(
            step=content.step,
            updates=content.updates,
            loader=None if content.loader is None else content.loader.to_state(),
            loaded=content.loaded,
            digests=content.digests,
            spikes={} if content.spikes is None else asdict(content.spikes),
            loss_scale=None if content.loss_scale is None else asdict(content.loss_scale),
            made_by=short_text(str((content.made_by or {}).get("verb", "?"))),
        )
