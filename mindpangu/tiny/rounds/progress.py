"""What a training in several rounds is to be, and how far the run folder has got with it. No MindSpore is loaded."""

from dataclasses import dataclass, replace

from mindpangu.checkpoint import CheckpointReader, differences, input_digests, latest_iteration
from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder
from mindpangu.data import LoaderState, TokenShards
from mindpangu.errors import CheckpointError, ConfigError, TrainingError
from mindpangu.language_model import ModelParts
from mindpangu.tiny.rounds.files import RoundSample, sample_file
from mindpangu.tiny.rounds.sampling import counts_of_parts, part_bounds

LOSSES = ("frozen", "recorded")
SCHEDULES = ("restart", "continue")


@dataclass(frozen=True)
class RoundSettings:
    """The options of `mindpangu tiny rounds`.

    Attributes:
        rounds: how many, the first included. rate: share of the batches that a further round trains on.
        parts: consecutive parts of the data, from each of which that share is drawn.
        losses: frozen: of the model at the end of the former round; recorded: of the last step on the batch.
        schedule: restart: each round goes through lr_scheduler anew, squeezed into its own steps; continue:
            lr_scheduler goes on over the steps of all rounds.

    Raises:
        ConfigError: a value out of range.
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
        """Raises TrainingError if some part of so many batches would give none to a further round."""
        if self.rounds > 1:
            counts_of_parts(part_bounds(num_batches, self.parts), self.rate)

    def sample_settings(self, config: Config) -> dict[str, int | float | str]:
        """What decides a round, by the name that a message uses. The number of rounds does not."""
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
    """The newest checkpoint of a run folder. `round` is the one that it was saved in, `batch` how many it had done."""

    reader: CheckpointReader
    loader: LoaderState
    round: int
    batch: int

    @staticmethod
    def from_folder(folder: RunFolder) -> "RoundsProgress | None":
        """None if there is no checkpoint. Raises CheckpointError if the newest is of no training."""
        newest = latest_iteration(folder.checkpoints)
        return None if newest is None else RoundsProgress.from_checkpoint(CheckpointReader(newest))

    @staticmethod
    def from_checkpoint(reader: CheckpointReader) -> "RoundsProgress":
        """At one checkpoint. Raises CheckpointError if it is of no training."""
        loader = reader.json("state.json")["loader"]
        if loader is None:
            raise CheckpointError(
                f"{reader.folder} was not saved by a training that could go on; start one from its weights with "
                "`mindpangu train --load`, then give that run"
            )
        return RoundsProgress(reader, loader, loader.get("round", 1), loader.get("batch", reader.step))


def read_sample(config: Config, settings: RoundSettings, round: int) -> RoundSample | None:
    """The sample of a round if it was drawn.

    Raises:
        TrainingError: it is damaged, of another round, or was drawn with other settings.
    """
    path = sample_file(RunFolder.from_config(config).rounds, round)
    if not path.exists():
        return None
    sample, wanted = RoundSample.load(path), settings.sample_settings(config)
    if sample.round != round:
        raise TrainingError(f"{path} is the sample of round {sample.round}; copy that of round {round} back")
    changed = [
        f"{key} was {then!r}, is {wanted.get(key)!r}"
        for key, then in sample.settings.items()
        if then != wanted.get(key)
    ]
    if changed:
        raise TrainingError(
            f"{path} is the sample of round {round}, drawn with other settings: {'; '.join(changed)}. Give the former "
            "ones, or choose another --training.run_name"
        )
    return sample


def is_done(config: Config, settings: RoundSettings) -> bool:
    """Whether the run folder's newest checkpoint is the end of the last round of exactly this training."""
    progress = RoundsProgress.from_folder(RunFolder.from_config(config))
    if progress is None or progress.round != settings.rounds:
        return False
    if settings.rounds == 1:
        last = config.training.steps
    else:
        sample = read_sample(config, settings, settings.rounds)
        if sample is None or sample.digest != progress.loader["sample"]:
            return False
        last = sample.last_step
    return progress.reader.step == last and not differences(progress.reader, config, digests_of(config))


def digests_of(config: Config) -> dict[str, str]:
    """See `input_digests`; of what lies in the run folder."""
    parts = ModelParts.from_run(config)
    shards = TokenShards.open(RunFolder.from_config(config).data)
    return input_digests(shards.digest, parts.table, parts.tokenizers)


def of_steps(config: Config, steps: int) -> Config:
    """The same run with another training.steps; lr_scheduler stays, as decay_steps is resolved."""
    return replace(config, training=replace(config.training, steps=steps))
