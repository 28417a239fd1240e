"""From a trained model and calibration text to what a smaller model keeps of it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

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


@dataclass(frozen=True)
class Selection:
    """How layers and units are chosen.

    Attributes:
        method: one of `importance.METHODS`. calibration_batches: how many of the training stream.
        keep_first, keep_last: layers that stay in any case. mask: of the learned mask.
    """

    method: str
    calibration_batches: int = 8
    keep_first: int = 2
    keep_last: int = 2
    mask: MaskTraining = field(default_factory=MaskTraining)

    def __post_init__(self):
        importance.require_method(self.method)
        if self.calibration_batches < 1:
            raise ConfigError(f"--calibration-batches is {self.calibration_batches}; give 1 or more")


@dataclass(frozen=True)
class Inheritance:
    """What a child keeps, and how the parent does without the rest.

    Attributes:
        kept: layers and units. importance: of all units, by the selection's method.
        windows: the loss without windows of layers.
        whole, without_layers, pruned: mean loss of the parent, without the layers that go, without the units as well,
            all on the calibration batches.
    """

    kept: Kept
    importance: Units
    windows: Sequence[Window]
    whole: float
    without_layers: float
    pruned: float


def inherit(
    reader: CheckpointReader,
    config: Config,
    shards: TokenShards,
    selection: Selection,
    progress: Callable[[Sequence, str], Iterable] = lambda items, name: items,
) -> Inheritance:
    """Chooses what a child keeps of its parent; nothing is written.

    Args:
        reader: the parent's checkpoint. config: of the child, which fits it (`lifecycle.prune.require_child`).
        shards: the child's text, in the parent's tokens; of it the training split is used.
        progress: (items, what they are) → the items, e.g. with a progress bar.

    Raises:
        ConfigError: a selection that does not fit the models. DataError: text of other domains or tokens.
    """
    model = load_model(reader, replace(config.context, precision="fp32"))
    domains = build_domains(config)
    for tokenizer in model.tokenizers.values():
        shards.require_tokenizer(tokenizer.digest)
    batches = calibration_batches(shards, config, selection.calibration_batches)
    loss = MaskedLoss(model.config, model.decoder, Vocabularies.build(config, domains), batches)
    weights = {name: parameter.asnumpy() for name, parameter in model.decoder.parameters.items()}
    return select(loss, config, weights, selection, progress)


def select(
    loss: MaskedLoss,
    config: Config,
    weights: dict[str, np.ndarray],
    selection: Selection,
    progress: Callable[[Sequence, str], Iterable] = lambda items, name: items,
) -> Inheritance:
    """Layers first, then the units of those that stay.

    Args:
        config: of the child. weights: the parent's dense parameters by name.
    """
    parent, child, units = loss.config.model, config.model, Units.full(loss.config.model)
    depths = (parent.num_layers, child.num_layers, selection.keep_first, selection.keep_last)
    require_depth(*depths, parent.query_layer)
    everything = tuple(range(parent.num_layers))
    whole = loss.loss(units, importance.layer_mask(parent, everything))
    windows = measure_windows(loss, progress=lambda items: progress(items, "layers"))
    layers = choose_layers(windows, whole, *depths)
    if selection.method == importance.LEARNED:
        found = learned(loss, child, layers, selection.mask, lambda items: progress(items, "mask"))
    elif selection.method == importance.TAYLOR:
        found = importance.taylor(loss, layers)
    elif selection.method == importance.RANDOM:
        found = importance.random(parent, config.training.seed)
    else:
        found = {importance.L1: importance.l1, importance.L2: importance.l2}[selection.method](parent, weights, layers)
    kept = Kept(layers, importance.largest(found, child))
    layers_L = importance.layer_mask(parent, layers)
    return Inheritance(kept, found, windows, whole, loss.loss(units, layers_L), loss.loss(kept.masks(parent), layers_L))


def calibration_batches(shards: TokenShards, config: Config, number: int) -> list[Batch]:
    """The first micro-batches of the training stream."""
    loader, batches = Loader(shards, build_domains(config), config), []
    while len(batches) < number:
        batches += loader.next_step().micro_batches
    return batches[:number]
