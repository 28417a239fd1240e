"""Initial weights: a random stream for each name, the same on every machine and in every order. No MindSpore here."""

import hashlib

import numpy as np

from mindpangu.config import Config, ModelConfig


def normal(seed: int, name: str, shape: tuple[int, ...], std: float) -> np.ndarray:
    """float32 of `shape` from N(0, std²), from the stream that belongs to (seed, name)."""
    key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.SFC64(int.from_bytes(key, "little")))
    values = generator.standard_normal(shape, dtype=np.float32)
    values *= np.float32(std)
    return values


def output_std(model: ModelConfig, layer: int) -> float:
    """Of the matrices of a layer (counted from 0) that add to the residual stream; see model.initialization."""
    if model.initialization == "constant":
        return model.init_std
    return model.init_std / np.sqrt(2 * (model.num_layers if model.initialization == "depth_scaled" else layer + 1))


def initial_series(terms: int, inner: int) -> dict[str, np.ndarray]:
    """Scale and shift of a series-informed activation, float32 [n, F]: terms of scale 1 whose shifts are 1 apart around
    0. Equal terms would stay equal; one is the plain activation (ours: the paper does not say)."""
    shifts = np.arange(terms, dtype=np.float32) - np.float32((terms - 1) / 2)
    return {"scale": np.ones((terms, inner), np.float32), "shift": np.repeat(shifts[:, None], inner, 1)}


def network_tensors(model: ModelConfig) -> tuple[str, ...]:
    """The tensors of a feed-forward network or an expert, as `ascend_ops.grouped_ffn` orders them."""
    has = {
        "gate": model.activation == "swiglu",
        "gate_bias": model.activation == "swiglu" and model.biases,
        "up": True,
        "up_bias": model.biases,
        "scale": model.series_terms > 0,
        "shift": model.series_terms > 0,
        "down": True,
        "down_bias": model.biases,
    }
    return tuple(name for name, there in has.items() if there)


def dense_name(tensor: str) -> str:
    """What a tensor of an expert is called in a dense layer's feed-forward network: "up_bias" is "up.bias"."""
    matrix, _, bias = tensor.partition("_")
    return f"{matrix}.bias" if bias else f"series.{tensor}" if tensor in ("scale", "shift") else f"{tensor}.weight"


def expert_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Tensor of an expert → shape, in the order of `network_tensors`."""
    hidden, inner, terms = config.model.hidden_size, config.model.ffn_hidden_size, config.model.series_terms
    shapes = {"gate": (hidden, inner), "up": (hidden, inner), "down": (inner, hidden), "down_bias": (hidden,)}
    shapes |= {"gate_bias": (inner,), "up_bias": (inner,), "scale": (terms, inner), "shift": (terms, inner)}
    return {name: shapes[name] for name in network_tensors(config.model)}


def initial_expert(config: Config, layer: int, domain_name: str, index: int) -> dict[str, np.ndarray]:
    """The tensors of an expert that is not trained yet; each matrix from a random stream of its own.

    Args:
        layer: the RRE layer, counted from 0.
    """
    model = config.model
    to_residual = output_std(model, model.num_layers - model.rre_layers + layer)
    std = {"gate": model.init_std, "up": model.init_std, "down": to_residual}
    stream = f"experts/{layer}/{domain_name}/{index}"
    series = initial_series(model.series_terms, model.ffn_hidden_size)
    return {
        name: normal(config.training.seed, f"{stream}/{name}", shape, std[name])
        if name in std
        else series.get(name, np.zeros(shape, np.float32))
        for name, shape in expert_shapes(config).items()
    }
