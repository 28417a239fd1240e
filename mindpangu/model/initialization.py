"""Initial weights, and the tensors of a feed-forward network. No MindSpore here.

Every tensor is drawn from a random stream named after it, so it is the same on every machine and in any order.
"""

import hashlib

import numpy as np

from mindpangu.config import Config, ModelConfig

NETWORK_AXES = {
    "gate": "HF",
    "gate_bias": "F",
    "up": "HF",
    "up_bias": "F",
    "scale": "nF",
    "shift": "nF",
    "down": "FH",
    "down_bias": "H",
}
"""Axes of every tensor that a feed-forward network or an expert can have, in the order of `ascend_ops.grouped_ffn`:
H hidden_size, F ffn_hidden_size, n series_terms. Shapes, initial values, and pruning follow from it."""

MATRICES = ("gate", "up", "down")
"""The tensors that are drawn at random and have weight decay."""


def normal(seed: int, name: str, shape: tuple[int, ...], std: float) -> np.ndarray:
    """Draws float32 values from N(0, std²), from the random stream of (seed, name)."""
    key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.SFC64(int.from_bytes(key, "little")))
    values = generator.standard_normal(shape, dtype=np.float32)
    values *= np.float32(std)
    return values


def output_std(model: ModelConfig, layer: int) -> float:
    """Returns the standard deviation of the matrices that write to the residual stream in a layer, counted from 0.
    `model.initialization` selects the rule."""
    if model.initialization == "constant":
        return model.init_std
    return model.init_std / np.sqrt(2 * (model.num_layers if model.initialization == "depth_scaled" else layer + 1))


def initial_series(terms: int, inner: int) -> dict[str, np.ndarray]:
    """Returns scale and shift of a series-informed activation, float32 [n, F].

    Every term has scale 1. The shifts are 1 apart around 0, because equal terms would stay equal. A single term is the
    plain activation. Ours: the paper does not specify it.
    """
    shifts = np.arange(terms, dtype=np.float32) - np.float32((terms - 1) / 2)
    return {"scale": np.ones((terms, inner), np.float32), "shift": np.repeat(shifts[:, None], inner, 1)}


def network_tensors(model: ModelConfig) -> tuple[str, ...]:
    """Returns the tensors of a feed-forward network or expert of this model, in the order of NETWORK_AXES."""
    absent = set()
    if model.activation != "swiglu":
        absent |= {"gate", "gate_bias"}
    if not model.biases:
        absent |= {"gate_bias", "up_bias", "down_bias"}
    if not model.series_terms:
        absent |= {"scale", "shift"}
    return tuple(name for name in NETWORK_AXES if name not in absent)


def dense_name(tensor: str) -> str:
    """Returns the name of an expert's tensor in a dense layer's network: "up_bias" becomes "up.bias"."""
    if tensor in ("scale", "shift"):
        return f"series.{tensor}"
    matrix, _, bias = tensor.partition("_")
    return f"{matrix}.bias" if bias else f"{matrix}.weight"


def expert_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Maps the tensors of an expert to their shapes, in the order of `network_tensors`."""
    model = config.model
    sizes = {"H": model.hidden_size, "F": model.ffn_hidden_size, "n": model.series_terms}
    return {name: tuple(sizes[axis] for axis in NETWORK_AXES[name]) for name in network_tensors(model)}


def initial_expert(config: Config, layer: int, domain_name: str, index: int) -> dict[str, np.ndarray]:
    """Draws the tensors of an untrained expert, each matrix from a random stream of its own.

    Args:
        layer: the RRE layer, counted from 0.
    """
    model = config.model
    to_residual = output_std(model, model.num_layers - model.rre_layers + layer)
    series = initial_series(model.series_terms, model.ffn_hidden_size)
    tensors = {}
    for name, shape in expert_shapes(config).items():
        if name in MATRICES:
            std = to_residual if name == "down" else model.init_std
            stream = f"experts/{layer}/{domain_name}/{index}/{name}"
            tensors[name] = normal(config.training.seed, stream, shape, std)
        else:
            tensors[name] = series.get(name, np.zeros(shape, np.float32))
    return tensors
