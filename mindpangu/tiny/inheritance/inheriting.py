"""Selects the layers and units that a smaller model keeps of a trained one, by its loss on calibration text."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mindpangu.checkpoint import CheckpointReader
from mindpangu.config import Config
from mindpangu.data import Batch, Loader, TokenShards
from mindpangu.domains import build_domains
from mindpangu.errors import ConfigError
from mindpangu.language_model import load_model
from mindpangu.model.coupling import Kept, Units
from mindpangu.model.vocabularies import Vocabularies
from mindpangu.tiny.inheritance import importance
from mindpangu.tiny.inheritance.layers import Window, choose_layers, measure_windows, require_depth
from mindpangu.tiny.inheritance.learned_mask import MaskTraining, learned
from mindpangu.tiny.inheritance.masked_loss import MaskedLoss

Progress = Callable[[Sequence[Any], str], Iterable[Any]]
"""(items, label) → the items, e.g. in a progress bar."""


def _no_progress(items: Sequence[Any], label: str) -> Iterable[Any]:
    return items


@dataclass(frozen=True)
class Selection:
    """How layers and units are selected.

    Attributes:
        method: one of `importance.METHODS`.
        calibration_batches: number of micro-batches of training text to measure on.
        keep_first, keep_last: number of layers that are always kept at either end.
        mask: hyperparameters of the learned mask.
    """

    method: str
    calibration_batches: int = 8
    keep_first: int = 2
    keep_last: int = 2
    mask: MaskTraining = field(default_factory=MaskTraining)

    def __post_init__(self) -> None:
        importance.require_method(self.method)
        if self.calibration_batches < 1:
            raise ConfigError(f"--calibration-batches is {self.calibration_batches}; give 1 or more")


@dataclass(frozen=True)
class Inheritance:
    """The units that a child keeps of its parent, and the losses on the calibration batches.

    Attributes:
        kept: layers and units of the child.
        importance: importance of all units, by the selection's method.
        windows: loss without each window of layers.
        full_loss: mean loss of the parent.
        loss_without_layers: mean loss of the parent without the removed layers.
        pruned_loss: mean loss without the removed layers and units.
    """

    kept: Kept
    importance: Units
    windows: Sequence[Window]
    full_loss: float
    loss_without_layers: float
    pruned_loss: float


def inherit(
    reader: CheckpointReader,
    config: Config,
    shards: TokenShards,
    selection: Selection,
    progress: Progress = _no_progress,
) -> Inheritance:
    """Selects the layers and units that a child keeps of its parent. Writes nothing.

    Args:
        reader: checkpoint of the parent.
        config: configuration of the child; it must fit the parent (`lifecycle.prune.require_child`).
        shards: text of the child, tokenized with the parent's tokenizer. Only the training split is used.
        progress: (items, label) → the items, e.g. in a progress bar.

    Raises:
        ConfigError: the selection does not fit the models.
        DataError: the text has other domains or another tokenizer.
    """
    model = load_model(reader, replace(config.context, precision="fp32"), config.experts)
    domains = build_domains(config)
    for tokenizer in model.tokenizers.values():
        shards.require_tokenizer(tokenizer)
    batches = calibration_batches(shards, config, selection.calibration_batches)
    loss = MaskedLoss(model.config, model.decoder, Vocabularies.build(config, domains), batches)
    weights = {name: parameter.asnumpy() for name, parameter in model.decoder.parameters.items()}
    return select(loss, config, weights, selection, progress)


def select(
    loss: MaskedLoss,
    config: Config,
    weights: dict[str, np.ndarray],
    selection: Selection,
    progress: Progress = _no_progress,
) -> Inheritance:
    """Selects the layers first, then the units of the kept layers.

    Args:
        loss: the parent's masked loss.
        config: configuration of the child.
        weights: the parent's dense parameters by name.
        selection, progress: see `inherit`.
    """
    parent = loss.config.model
    child = config.model
    units = Units.full(parent)
    depths = (parent.num_layers, child.num_layers, selection.keep_first, selection.keep_last)
    require_depth(*depths, parent.query_layer)
    all_layers = tuple(range(parent.num_layers))
    full_loss = loss.loss(units, importance.layer_mask(parent, all_layers))
    windows = measure_windows(loss, progress=lambda items: progress(items, "layers"))
    layers = choose_layers(windows, full_loss, *depths)
    if selection.method == importance.LEARNED:
        scores = learned(loss, child, layers, selection.mask, lambda items: progress(items, "mask"))
    elif selection.method == importance.TAYLOR:
        scores = importance.taylor(loss, layers)
    elif selection.method == importance.RANDOM:
        scores = importance.random(parent, config.training.seed)
    else:
        by_weights = {importance.L1: importance.l1, importance.L2: importance.l2}[selection.method]
        scores = by_weights(parent, weights, layers)
    kept = Kept(layers, importance.largest(scores, child))
    layers_L = importance.layer_mask(parent, layers)
    return Inheritance(
        kept,
        scores,
        windows,
        full_loss,
        loss_without_layers=loss.loss(units, layers_L),
        pruned_loss=loss.loss(kept.masks(parent), layers_L),
    )


def calibration_batches(shards: TokenShards, config: Config, num_batches: int) -> list[Batch]:
    """Returns the first micro-batches of the training stream."""
    loader = Loader(shards, build_domains(config), config)
    batches: list[Batch] = []
    while len(batches) < num_batches:
        batches += loader.next_step().micro_batches
    return batches[:num_batches]
