"""Trains in rounds: the first round is an ordinary training; each further one trains on a sample of its batches.

A round continues with the weights, the optimizer state and the step number of the previous one. An interrupted training
resumes from its files: checkpoints, losses and samples.
"""

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np

from mindpangu.checkpoint import refuse_differences
from mindpangu.config import Config, require_one_process
from mindpangu.config.run_folder import RunFolder
from mindpangu.data import Loader, LoaderState, ReplayLoader, TokenShards
from mindpangu.domains import build_domains
from mindpangu.errors import TrainingError
from mindpangu.locks import locked
from mindpangu.tiny.rounds.batch_losses import frozen_losses, recorded_losses
from mindpangu.tiny.rounds.files import BatchLosses, RoundSample, losses_file, sample_file
from mindpangu.tiny.rounds.progress import RoundSettings, RoundsProgress, digests_of, read_sample, with_steps
from mindpangu.tiny.rounds.sampling import draw_round, part_bounds
from mindpangu.train.run import TrainingSchedule, open_run, set_device, train
from mindpangu.train.schedule import learning_rate

Log = Callable[[str], None]


def train_rounds(config: Config, settings: RoundSettings, resume: bool = False, log: Log = print) -> None:
    """Trains all rounds in a run folder that has its tokenizer, data and routing table.

    Args:
        config: configuration of round 1, which has training.steps batches and may already be trained.
        settings: settings of the rounds.
        resume: whether to resume in the middle of a round, bit for bit.
        log: receives messages for the user.

    Raises:
        InUseError: another process is training rounds in the run folder.
        StoppedBySignal: a signal stopped the training; calling this again with `resume` continues it.
        TrainingError: a round has begun but `resume` is not given, its settings have changed since, or a file of a
            round is damaged, missing, or belongs to another training.
        MindPanguError: see `train` and `open_run`.
    """
    require_one_process(config, "rounds are trained")
    settings.require_batches(config.training.steps)
    folder = RunFolder.from_config(config)
    set_device(config)
    with locked(folder.rounds, in_use=f"{folder.root} is being trained in rounds"):
        _train_first_round(config, resume, log)
        samples: list[RoundSample] = []
        for round in range(2, settings.rounds + 1):
            sample = _load_or_draw_sample(config, settings, round, samples, log)
            _train_round(config, settings, sample, resume, log)
            samples.append(sample)


def _train_first_round(config: Config, resume: bool, log: Log) -> None:
    """Runs the ordinary training unless it is finished."""
    folder = RunFolder.from_config(config)
    steps = config.training.steps
    progress = RoundsProgress.from_folder(folder)
    if progress is not None and (progress.round > 1 or progress.reader.step >= steps):
        if progress.round == 1 and progress.reader.step > steps:
            raise TrainingError(
                f"{folder.root} is trained up to step {progress.reader.step}, but round 1 ends at step {steps} "
                "(training.steps); give that many steps"
            )
        refuse_differences(progress.reader, config, digests_of(config))
        return
    log(f"rounds: round 1, {steps} batches")
    train(open_run(config), resume, log=log)


def _load_or_draw_sample(
    config: Config, settings: RoundSettings, round: int, earlier: list[RoundSample], log: Log
) -> RoundSample:
    """Returns the saved sample of a round, or draws it."""
    folder = RunFolder.from_config(config)
    progress = RoundsProgress.from_folder(folder)
    assert progress is not None, "round 1 has a checkpoint"
    path = sample_file(folder.rounds, round)
    sample = read_sample(config, settings, round)
    if sample is None and progress.round >= round:
        raise TrainingError(
            f"{progress.reader.folder} was saved in round {progress.round}, but {path} is missing; copy it back, or "
            f"remove {folder.checkpoints} to start over"
        )
    if sample is not None:
        if progress.round < round and sample.checkpoint != progress.reader.digest:
            raise TrainingError(
                f"{path} was drawn for another checkpoint than {progress.reader.folder}; remove it and "
                f"{losses_file(folder.rounds, round - 1)} to draw round {round} again"
            )
        return sample
    shards = TokenShards.open(folder.data, verify=True)
    losses = _batch_losses(config, settings, progress, earlier, shards, log)
    batches = draw_round(losses.losses_J, settings.rate, settings.parts, config.data.seed, round)
    sample = RoundSample(
        round=round,
        settings=settings.sample_settings(config),
        losses=losses.digest,
        checkpoint=progress.reader.digest,
        steps_before=progress.reader.step,
        begins_at=progress.loader,
        num_batches=config.training.steps,
        batches=batches,
        states=_states_before(config, shards, batches),
    )
    sample.save(path)
    log(format_sample(sample, losses.losses_J, settings.parts))
    return sample


def _batch_losses(
    config: Config,
    settings: RoundSettings,
    progress: RoundsProgress,
    earlier: list[RoundSample],
    shards: TokenShards,
    log: Log,
) -> BatchLosses:
    folder = RunFolder.from_config(config)
    steps = config.training.steps
    path = losses_file(folder.rounds, progress.round)
    if settings.losses == "frozen":
        log(f"rounds: computing the loss of {steps} batches at the end of round {progress.round}")
        return frozen_losses(progress.reader, config, shards, progress.round, path)
    values = recorded_losses(folder.metrics, steps, earlier)
    losses = BatchLosses(progress.round, "recorded", progress.reader.digest, steps, values)
    losses.save(path)
    return losses


def _states_before(config: Config, shards: TokenShards, batches: np.ndarray) -> list[LoaderState]:
    """Returns the state of the training stream before each of the batches, which are ascending."""
    loader = Loader(shards, build_domains(config), config)
    states: list[LoaderState] = []
    drawn = set(batches.tolist())
    for batch in range(int(batches[-1]) + 1):
        if batch in drawn:
            states.append(loader.state())
        loader.skip_step()
    return states


def _train_round(config: Config, settings: RoundSettings, sample: RoundSample, resume: bool, log: Log) -> None:
    """Trains a further round unless it is finished."""
    folder = RunFolder.from_config(config)
    progress = RoundsProgress.from_folder(folder)
    assert progress is not None, "round 1 has a checkpoint"
    if progress.round > sample.round:
        return
    if progress.round == sample.round:
        if progress.loader["sample"] != sample.digest:
            raise TrainingError(
                f"{progress.reader.folder} was saved in round {sample.round} with another sample than "
                f"{sample_file(folder.rounds, sample.round)}; copy that one back"
            )
        if progress.batch == len(sample):
            return
        if not resume:
            raise TrainingError(
                f"{folder.root} already holds round {sample.round} up to batch {progress.batch} of {len(sample)}; "
                f"continue it with --resume, choose another --training.run_name, or remove {folder.checkpoints}"
            )
    log(f"rounds: round {sample.round}, steps {sample.steps_before + 1} to {sample.last_step}")
    run = open_run(with_steps(config, sample.last_step))
    loader = ReplayLoader(
        Loader(run.shards, run.model.domains, run.config), sample.round, sample.states, sample.digest, sample.begins_at
    )
    schedule = TrainingSchedule(loader, learning_rate_of_round(config, settings, sample))
    train(run, resume=True, log=log, schedule=schedule)


def learning_rate_of_round(config: Config, settings: RoundSettings, sample: RoundSample) -> Callable[[int], float]:
    """Returns the learning rate of a further round as a function of the training step.

    See `RoundSettings.schedule`.
    """
    if settings.schedule == "continue":
        return partial(learning_rate, config.lr_scheduler)

    def restarted(step: int) -> float:
        return learning_rate(config.lr_scheduler, (step - sample.steps_before) * sample.num_batches / len(sample))

    return restarted


def format_sample(sample: RoundSample, losses_J: np.ndarray, parts: int) -> str:
    """Formats a table with a row per part: its batches, how many of them were drawn, and their mean losses."""
    bounds = part_bounds(len(losses_J), parts)
    lines = [
        f"rounds: round {sample.round} trains on {len(sample)} of {len(losses_J)} batches",
        f"{'part':>6} {'batches':>8} {'drawn':>6} {'mean loss':>10} {'of drawn':>9}",
    ]
    for part, (start, stop) in enumerate(itertools.pairwise(bounds), 1):
        drawn = sample.batches[(sample.batches >= start) & (sample.batches < stop)]
        lines.append(
            f"{part:>6} {stop - start:>8,} {len(drawn):>6,} {losses_J[start:stop].mean():>10.4f} "
            f"{losses_J[drawn].mean():>9.4f}"
        )
    return "\n".join(lines)
