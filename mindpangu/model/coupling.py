"""Which entries of a dense model's tensors belong together, so that its width can be changed. No MindSpore here.

A unit is something that can be left out as a whole, and the tensors have a row, a column or an entry of it:

    channel      of the residual stream: of embeddings, norms, and every matrix that reads or writes the stream
    head         of a layer: K columns of query, key and value, K rows of the output matrix
    neuron       of a layer's feed-forward network: a column of gate and up, a row of down
    bottleneck   a neuron of the augmented shortcut beside a layer's attention

Shapes: H channels, L layers, N heads of a layer, K numbers of a head, F neurons, M bottleneck neurons.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mindpangu.config import ModelConfig
from mindpangu.model.initialization import NETWORK_AXES, dense_name

CHANNELS, HEADS, NEURONS, BOTTLENECK = KINDS = ("channels", "heads", "neurons", "bottleneck")

_UNIT_OF_AXIS = {"H": CHANNELS, "F": NEURONS}

_OF_LAYER = {
    "attention_norm.gamma": (CHANNELS,),
    "attention_norm.beta": (CHANNELS,),
    "attention.query.weight": (CHANNELS, HEADS),
    "attention.query.bias": (HEADS,),
    "attention.key.weight": (CHANNELS, HEADS),
    "attention.key.bias": (HEADS,),
    "attention.value.weight": (CHANNELS, HEADS),
    "attention.value.bias": (HEADS,),
    "attention.output.weight": (HEADS, CHANNELS),
    "attention.output.bias": (CHANNELS,),
    "shortcut.down.weight": (CHANNELS, BOTTLENECK),
    "shortcut.down.bias": (BOTTLENECK,),
    "shortcut.up.weight": (BOTTLENECK, CHANNELS),
    "shortcut.up.bias": (CHANNELS,),
    "ffn_norm.gamma": (CHANNELS,),
    "ffn_norm.beta": (CHANNELS,),
} | {f"ffn.{dense_name(tensor)}": tuple(map(_UNIT_OF_AXIS.get, axes)) for tensor, axes in NETWORK_AXES.items()}
_OUTSIDE = {
    "word_embedding": (None, CHANNELS),
    "position_embedding": (None, CHANNELS),
    "query_embedding": (None, CHANNELS),
    "head.weight": (None, CHANNELS),
    "final_norm.gamma": (CHANNELS,),
    "final_norm.beta": (CHANNELS,),
}


@dataclass(frozen=True)
class Units:
    """Values of all units: masks, importances, numbers of kept ones.

    Attributes:
        channels: [H]. heads: [L, N]. neurons: [L, F]. bottleneck: [L, M], M is 0 without a shortcut.
    """

    channels: np.ndarray
    heads: np.ndarray
    neurons: np.ndarray
    bottleneck: np.ndarray

    @staticmethod
    def full(model: ModelConfig, value: float = 1.0) -> "Units":
        """float32, the same value for every unit."""
        return Units(**{kind: np.full(shape, value, np.float32) for kind, shape in unit_shapes(model).items()})

    def of(self, kind: str) -> np.ndarray:
        return getattr(self, kind)

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        return ((kind, self.of(kind)) for kind in KINDS)


@dataclass(frozen=True)
class Kept:
    """What is left of a model: numbers of layers and units of the larger one, ascending.

    Attributes:
        layers: of those that stay.
        units: int64 [H'], [L, N'], [L, F'] and [L, M']; L counts the larger model's layers.
    """

    layers: tuple[int, ...]
    units: Units

    def indices(self, kind: str, layer: int | None, head_size: int) -> np.ndarray:
        """Along an axis of a tensor. `layer`: that of the tensor, in the larger model."""
        units = self.units.of(kind)
        if kind == CHANNELS:
            return units
        if kind == HEADS:
            return (units[layer][:, None] * head_size + np.arange(head_size)).reshape(-1)
        return units[layer]

    def masks(self, model: ModelConfig) -> Units:
        """float32: 1 for the units that stay, else 0."""
        masks = Units.full(model, 0.0)
        for kind, mask in masks.items():
            np.put_along_axis(mask, self.units.of(kind), 1.0, axis=-1)
        return masks


def unit_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Kind of unit → shape of the values of all its units, the layers first where they have their own."""
    narrow = model.hidden_size // model.shortcut_reduction if model.shortcut_reduction else 0
    layers = model.num_layers
    return {
        CHANNELS: (model.hidden_size,),
        HEADS: (layers, model.num_heads),
        NEURONS: (layers, model.ffn_hidden_size),
        BOTTLENECK: (layers, narrow),
    }


def layer_name(model: ModelConfig, layer: int) -> str:
    """What the tensors of a layer begin with; layers count from 0, the query layer is the last."""
    is_query_layer = model.query_layer and layer == model.num_layers - 1
    return "query_layer" if is_query_layer else f"blocks.{layer}"


def place_of(model: ModelConfig, name: str) -> tuple[int | None, tuple[str | None, ...]]:
    """The layer of a dense parameter (None outside of layers), and what its axes count (None: no units).

    Raises:
        KeyError: a parameter that no dense model has.
    """
    if name in _OUTSIDE:
        return None, _OUTSIDE[name]
    first, _, rest = name.partition(".")
    if first == "query_layer":
        return model.num_layers - 1, _OF_LAYER[rest]
    number, _, rest = rest.partition(".")
    return int(number), _OF_LAYER[rest]


def sums_over_units(model: ModelConfig, tensors: Mapping[str, np.ndarray]) -> Units:
    """float64: of each unit the sum of what the tensors have of it.

    Args:
        tensors: name of a dense parameter → values of its shape. What is left out counts as 0.
    """
    shapes = unit_shapes(model)
    totals = {kind: np.zeros(shape) for kind, shape in shapes.items()}
    for name, values in tensors.items():
        layer, axes = place_of(model, name)
        for axis, kind in enumerate(axes):
            if kind is None:
                continue
            others = tuple(other for other in range(values.ndim) if other != axis)
            total = values.sum(others, dtype=np.float64)
            if kind == CHANNELS:
                totals[kind] += total
            else:
                totals[kind][layer] += total.reshape(shapes[kind][1], -1).sum(1)
    return Units(**totals)
