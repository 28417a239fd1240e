"""The coupled entries of a dense model's tensors, by which its width can be changed. No MindSpore here.

A unit can only be removed as a whole. It comprises some rows, columns, or entries of several tensors:

    channel      of the residual stream: in embeddings, norms, and every matrix that reads or writes the stream
    head         of a layer: K columns of query, key and value, K rows of the output matrix
    neuron       of a layer's feed-forward network: a column of gate and up, a row of down
    bottleneck   of the augmented shortcut parallel to a layer's attention: a column of down, a row of up
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mindpangu.config import Config, ModelConfig
from mindpangu.model.initialization import NETWORK_AXES, dense_name

CHANNELS = "channels"
HEADS = "heads"
NEURONS = "neurons"
BOTTLENECK = "bottleneck"
KINDS = (CHANNELS, HEADS, NEURONS, BOTTLENECK)

_UNIT_OF_AXIS = {"H": CHANNELS, "F": NEURONS}

_LAYER_PARAMETERS = {
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
_OTHER_PARAMETERS = {
    "word_embedding": (None, CHANNELS),
    "position_embedding": (None, CHANNELS),
    "query_embedding": (None, CHANNELS),
    "head.weight": (None, CHANNELS),
    "final_norm.gamma": (CHANNELS,),
    "final_norm.beta": (CHANNELS,),
}


@dataclass(frozen=True)
class Units:
    """One value for every unit, such as a mask or an importance, or the indices of the kept units.

    Attributes:
        channels: [hidden_size].
        heads: [num_layers, num_heads].
        neurons: [num_layers, ffn_hidden_size].
        bottleneck: [num_layers, hidden_size / shortcut_reduction]; [num_layers, 0] without a shortcut.
    """

    channels: np.ndarray
    heads: np.ndarray
    neurons: np.ndarray
    bottleneck: np.ndarray

    @staticmethod
    def full(model: ModelConfig, value: float = 1.0) -> "Units":
        """Returns float32 units that all have the same value."""
        return Units(**{kind: np.full(shape, value, np.float32) for kind, shape in unit_shapes(model).items()})

    def of(self, kind: str) -> np.ndarray:
        """Returns the values of one kind of unit."""
        return getattr(self, kind)

    def items(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (kind, values)."""
        return ((kind, self.of(kind)) for kind in KINDS)


@dataclass(frozen=True)
class Kept:
    """The layers and units of a larger model that a smaller one keeps, as ascending indices.

    Attributes:
        layers: indices of the kept layers.
        units: int64 indices of the kept units; the first axis of heads, neurons, and bottleneck still counts the layers
            of the larger model.
    """

    layers: tuple[int, ...]
    units: Units

    def indices(self, kind: str, layer: int | None, head_size: int) -> np.ndarray:
        """Returns the kept indices along an axis of a tensor of one layer of the larger model."""
        units = self.units.of(kind)
        if kind == CHANNELS:
            return units
        if kind == HEADS:
            return (units[layer][:, None] * head_size + np.arange(head_size)).reshape(-1)
        return units[layer]

    def masks(self, model: ModelConfig) -> Units:
        """Returns float32 masks: 1 for kept units, else 0."""
        masks = Units.full(model, 0.0)
        for kind, mask in masks.items():
            np.put_along_axis(mask, self.units.of(kind), 1.0, axis=-1)
        return masks


def unit_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Maps each kind of unit to the shape of its values. The first axis is the layer, except for channels."""
    narrow = model.hidden_size // model.shortcut_reduction if model.shortcut_reduction else 0
    layers = model.num_layers
    return {
        CHANNELS: (model.hidden_size,),
        HEADS: (layers, model.num_heads),
        NEURONS: (layers, model.ffn_hidden_size),
        BOTTLENECK: (layers, narrow),
    }


def layer_name(model: ModelConfig, layer: int) -> str:
    """Returns the prefix of a layer's tensors. Layers count from 0; the query layer is the last."""
    is_query_layer = model.query_layer and layer == model.num_layers - 1
    return "query_layer" if is_query_layer else f"blocks.{layer}"


def layer_and_units(model: ModelConfig, name: str) -> tuple[int | None, tuple[str | None, ...]]:
    """Returns the layer of a dense parameter (None outside of layers) and the kind of unit that each axis counts (None
    for an axis without units).

    Raises:
        KeyError: no dense model has this parameter.
    """
    if name in _OTHER_PARAMETERS:
        return None, _OTHER_PARAMETERS[name]
    first, _, rest = name.partition(".")
    if first == "query_layer":
        return model.num_layers - 1, _LAYER_PARAMETERS[rest]
    layer, _, rest = rest.partition(".")
    return int(layer), _LAYER_PARAMETERS[rest]


def parameter_shape(config: Config, name: str) -> tuple[int, ...]:
    """Returns the shape of a dense parameter of a model. Raises ValueError if the model cannot have it."""
    model = config.model
    try:
        layer, axes = layer_and_units(model, name)
    except (KeyError, ValueError):
        raise ValueError(f"no model has the dense parameter {name}") from None
    if layer is not None and not (0 <= layer < model.num_layers and name.startswith(f"{layer_name(model, layer)}.")):
        raise ValueError(f"this model has no dense parameter {name}")
    size_of_unit = {
        CHANNELS: model.hidden_size,
        HEADS: model.hidden_size,
        NEURONS: model.ffn_hidden_size,
        BOTTLENECK: unit_shapes(model)[BOTTLENECK][1],
    }
    num_rows = sum(vocabulary.vocab_size for vocabulary in config.domains.vocabularies) or model.vocab_size
    size_without_units = {
        "word_embedding": num_rows,
        "head.weight": num_rows,
        "position_embedding": model.seq_length,
        "query_embedding": model.seq_length,
    }.get(name, model.series_terms)
    return tuple(size_without_units if kind is None else size_of_unit[kind] for kind in axes)


def sums_over_units(model: ModelConfig, tensors: Mapping[str, np.ndarray]) -> Units:
    """Sums, for each unit, its entries in all tensors. Returns float64.

    Args:
        tensors: name of a dense parameter → values of its shape. A parameter that is left out counts as 0.
    """
    shapes = unit_shapes(model)
    totals = {kind: np.zeros(shape) for kind, shape in shapes.items()}
    for name, values in tensors.items():
        layer, axes = layer_and_units(model, name)
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
