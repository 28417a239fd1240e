"""Settings of a training in rounds, and how far a run folder has been trained. Does not load MindSpore."""

from dataclasses import dataclass, replace

from mindpangu.checkpoint import CheckpointReader, SavedState, differences, input_digests, latest_iteration
from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder
from mindpangu.data import LoaderState, TokenShards
from mindpangu.errors import CheckpointError, ConfigError, TrainingError
from mindpangu.language_model import ModelParts
from mindpangu.tiny.rounds.files import RoundSample, sample_file
from mindpangu.tiny.rounds.sampling import draws_per_part, part_bounds

LOSSES = ("frozen", "recorded")
SCHEDULES = ("restart", "continue")


@dataclass(frozen=True)
class RoundSettings:
    """The options of `mindpangu tiny rounds`.

    Attributes:
        rounds: number of rounds, including the first.
        rate: share of the batches that a further round trains on.
        parts: number of consecutive parts of the data; this share is drawn from each.
        losses: "frozen": computed with the model at the end of the previous round; "recorded": from the last training
            step on the batch.
        schedule: "restart": each round runs the complete lr_scheduler, compressed to the round's steps; "continue":
            lr_scheduler runs once over the steps of all rounds.

    Raises:
        ConfigError: a value is out of range.
    """

    rounds: int = 2
    rate: float = 0.5
    parts: int = 8
    losses: str = "frozen"
    schedule: str = "restart"

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"--rounds is {self.rounds}; allowed: >= 1")
        if not 0 < self.rate <= 1:
            raise ConfigError(f"--rate is {self.rate}; allowed: > 0 and <= 1")
        if self.parts < 1:
            raise ConfigError(f"--parts is {self.parts}; allowed: >= 1")
        if self.losses not in LOSSES:
            raise ConfigError(f"--losses is {self.losses!r}; allowed: {', '.join(LOSSES)}")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"--schedule is {self.schedule!r}; allowed: {', '.join(SCHEDULES)}")

    def require_batches(self, num_batches: int) -> None:
        """Raises TrainingError if a further round would draw no batch from some part of `num_batches` batches."""
        if self.rounds > 1:
            draws_per_part(part_bounds(num_batches, self.parts), self.rate)

    def sample_settings(self, config: Config) -> dict[str, int | float | str]:
        """Returns the settings that the sample of a round depends on, under the names that messages use.

        The number of rounds is not among them.
        """
        return {
            "--rate": self.rate,
            "--parts": self.parts,
            "--losses": self.losses,
            "--schedule": self.schedule,
            "data.seed": config.data.seed,
            "training.steps": config.training.steps,
        }


@dataclass(frozen=True)
class RoundsProgress:
    """How far a run has been trained, according to one of its checkpoints.

    Attributes:
        reader: the checkpoint.
        loader: loader state of the checkpoint.
        round: the round that it was saved in.
        batch: number of batches of this round that have been trained on.
    """

    reader: CheckpointReader
    loader: LoaderState
    round: int
    batch: int

    @staticmethod
    def from_folder(folder: RunFolder) -> "RoundsProgress | None":
        """Returns the progress at the newest checkpoint, or None without one.

        Raises:
            CheckpointError: the checkpoint was not saved by a training.
        """
        if latest_iteration(folder.checkpoints) is None:
            return None
        return RoundsProgress.from_checkpoint(CheckpointReader(folder.checkpoints))

    @staticmethod
    def from_checkpoint(reader: CheckpointReader) -> "RoundsProgress":
        """Returns the progress at a checkpoint.

        Raises:
            CheckpointError: the checkpoint was not saved by a training.
        """
        loader = SavedState.read(reader).loader
        if loader is None:
            raise CheckpointError(
                f"{reader.folder} was not saved by a training that can be resumed; start one from its weights with "
                "`mindpangu train --load`, then give that run"
            )
        # integers, as `SavedState` has checked
        return RoundsProgress(reader, loader, loader.get("round", 1), loader.get("batch", reader.step))  # type: ignore[arg-type]


def read_sample(config: Config, settings: RoundSettings, round: int) -> RoundSample | None:
    """Returns the sample of a round, or None if it has not been drawn.

    Raises:
        TrainingError: the sample is damaged, belongs to another round, or was drawn with other settings.
    """
    path = sample_file(RunFolder.from_config(config).rounds, round)
    if not path.exists():
        return None
    sample = RoundSample.load(path)
    current = settings.sample_settings(config)
    if sample.round != round:
        raise TrainingError(f"{path} is the sample of round {sample.round}; copy that of round {round} back")
    changed = [
        f"{key} was {then!r}, is {current.get(key)!r}"
        for key, then in sample.settings.items()
        if then != current.get(key)
    ]
    if changed:
        raise TrainingError(
            f"{path} is the sample of round {round}, drawn with other settings: {'; '.join(changed)}. Give those "
            "again, or choose another --training.run_name"
        )
    return sample


def is_done(config: Config, settings: RoundSettings) -> bool:
    """True if the newest checkpoint of the run folder is the end of the last round of exactly this training."""
    progress = RoundsProgress.from_folder(RunFolder.from_config(config))
    if progress is None or progress.round != settings.rounds:
        return False
    if settings.rounds == 1:
        last_step = config.training.steps
    else:
        sample = read_sample(config, settings, settings.rounds)
        if sample is None or sample.digest != progress.loader["sample"]:
            return False
        last_step = sample.last_step
    return progress.reader.step == last_step and not differences(progress.reader, config, digests_of(config))


def digests_of(config: Config) -> dict[str, str]:
    """Returns the `input_digests` of a run folder: data, routing table, and tokenizers."""
    parts = ModelParts.from_run(config)
    shards = TokenShards.open(RunFolder.from_config(config).data)
    return input_digests(shards.digest, parts.table, parts.tokenizers)


def with_steps(config: Config, steps: int) -> Config:
    """Returns the configuration with another training.steps. lr_scheduler.decay_steps is resolved, so it stays."""
    return replace(config, training=replace(config.training, steps=steps))
