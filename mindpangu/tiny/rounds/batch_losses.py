"""The losses that weight the draw of the next round, one per batch: computed, or read from metrics.jsonl."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindpangu.checkpoint import CheckpointReader, refuse_differences
from mindpangu.config import Config
from mindpangu.data import Batch, Loader, TokenShards
from mindpangu.errors import TrainingError
from mindpangu.language_model import LanguageModel, load_model
from mindpangu.signals import StopOnSignal, StoppedBySignal
from mindpangu.tiny.rounds.files import BatchLosses, RoundSample
from mindpangu.tiny.rounds.progress import digests_of
from mindpangu.train.loop import name_batches
from mindpangu.train.metrics import read_metrics
from mindpangu.train.run import set_device

SAVE_SECONDS = 10.0
"""Seconds between saves; a kill loses at most this much of the computation."""


def frozen_losses(reader: CheckpointReader, config: Config, shards: TokenShards, round: int, path: Path) -> BatchLosses:
    """Computes the losses of all batches of round 1 under one checkpoint, forward only. Continues a saved computation.

    Args:
        reader: checkpoint at the end of the round.
        config: configuration of the run; round 1 has training.steps batches.
        shards: the run's token shards.
        round: number of the round that ended with the checkpoint.
        path: the file for the losses.

    Raises:
        StoppedBySignal: a signal stopped the computation; the losses so far are saved.
        CheckpointError: the checkpoint is damaged, or its data, tokenizer, table or settings are not this run's.
        TrainingError: a loss is not finite, or the file is damaged or belongs to another checkpoint.
    """
    refuse_differences(reader, config, digests_of(config))
    losses = _load_or_start(reader, config.training.steps, round, path)
    if losses.is_complete:
        return losses
    set_device(config)
    model = load_model(reader, config.context, config.experts)
    model.require_data(shards)
    loader = Loader(shards, model.domains, config)
    values = losses.losses_J.tolist()
    for _ in values:
        loader.skip_step()
    saved_at = time.monotonic()
    bar = tqdm(desc="losses", unit="batch", total=config.training.steps, disable=None)
    with bar, StopOnSignal() as stop:
        bar.update(len(values))
        while len(values) < config.training.steps and not stop.requested:
            values.append(_loss(model, loader.next_step().micro_batches, len(values)))
            bar.update()
            if time.monotonic() - saved_at > SAVE_SECONDS:
                _with_values(losses, values).save(path)
                saved_at = time.monotonic()
    losses = _with_values(losses, values)
    losses.save(path)
    if stop.requested and not losses.is_complete:
        raise StoppedBySignal(stop.requested)
    return losses


def recorded_losses(metrics: Path, num_batches: int, samples: Sequence[RoundSample]) -> np.ndarray:
    """Returns the loss of each batch when it was last trained on, before that step's update; float64 [J].

    Args:
        metrics: metrics.jsonl of the training.
        num_batches: N, the number of batches of round 1.
        samples: samples of the finished rounds, from the second on.

    Raises:
        TrainingError: the file lacks a step, or its loss is not finite.
    """
    recorded = {record["step"]: record["loss"] for record in read_metrics(metrics)}

    def loss(step: int) -> float:
        if recorded.get(step) is None:
            raise TrainingError(f"{metrics} has no finite loss of step {step}; use --losses frozen, which computes it")
        return recorded[step]

    losses_J = np.array([loss(step) for step in range(1, num_batches + 1)])
    for sample in samples:
        losses_J[sample.batches] = [loss(step) for step in range(sample.steps_before + 1, sample.last_step + 1)]
    return losses_J


def _load_or_start(reader: CheckpointReader, num_batches: int, round: int, path: Path) -> BatchLosses:
    if not path.exists():
        return BatchLosses(round, "frozen", reader.digest, num_batches, np.empty(0))
    losses = BatchLosses.load(path)
    if (losses.source, losses.checkpoint, losses.num_batches) != ("frozen", reader.digest, num_batches):
        raise TrainingError(
            f"{path} has losses of another training ({losses.source}, {losses.num_batches} batches, checkpoint "
            f"{losses.checkpoint}; now frozen, {num_batches} batches, checkpoint {reader.digest}); remove it to "
            "compute them again"
        )
    return losses


def _with_values(losses: BatchLosses, values: Sequence[float]) -> BatchLosses:
    return BatchLosses(losses.round, losses.source, losses.checkpoint, losses.num_batches, np.array(values, np.float64))


def _loss(model: LanguageModel, micro_batches: Sequence[Batch], batch_index: int) -> float:
    """Returns the mean −log p over the counted targets of a step's micro-batches."""
    total = sum(
        float((model.token_losses(batch) * batch.loss_mask_BS).sum(dtype=np.float64)) for batch in micro_batches
    )
    targets = sum(float(batch.loss_mask_BS.sum()) for batch in micro_batches)
    loss = total / targets if targets else np.nan
    if not np.isfinite(loss):
        names = [domain.name for domain in model.domains]
        raise TrainingError(
            f"the loss of batch {batch_index + 1} is {loss} over {targets:.0f} targets, so no round can be drawn; it "
            f"has {name_batches(micro_batches, names)}"
        )
    return loss
