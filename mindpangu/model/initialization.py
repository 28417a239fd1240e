"""Initial weights: a random stream for each name, the same on every machine and in every order. No MindSpore here."""

import hashlib

import numpy as np

from mindpangu.config import Config


def normal(seed: int, name: str, shape: tuple[int, ...], std: float) -> np.ndarray:
    """float32 of `shape` from N(0, std²), from the stream that belongs to (seed, name)."""
    key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.SFC64(int.from_bytes(key, "little")))
    values = generator.standard_normal(shape, dtype=np.float32)
    values *= np.float32(std)
    return values


def expert_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Tensor of an expert → shape."""
    hidden, inner = config.model.hidden_size, config.model.ffn_hidden_size
    return {"up": (hidden, inner), "up_bias": (inner,), "down": (inner, hidden), "down_bias": (hidden,)}


def initial_expert(config: Config, layer: int, domain_name: str, index: int) -> dict[str, np.ndarray]:
    """The four tensors of an expert that is not trained yet, from a random stream of its own."""
    std = {"up": config.model.init_std, "down": config.model.init_std / np.sqrt(2 * config.model.num_layers)}
    stream = f"experts/{layer}/{domain_name}/{index}"
    return {
        name: normal(config.training.seed, f"{stream}/{name}", shape, std[name])
        if name in std
        else np.zeros(shape, np.float32)
        for name, shape in expert_shapes(config).items()
    }
