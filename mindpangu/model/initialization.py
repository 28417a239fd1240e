"""Initial weights: a random stream for each name, the same on every machine and in every order. No MindSpore here."""

import hashlib

import numpy as np


def normal(seed: int, name: str, shape: tuple[int, ...], std: float) -> np.ndarray:
    """float32 of `shape` from N(0, std²), from the stream that belongs to (seed, name)."""
    key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.SFC64(int.from_bytes(key, "little")))
    values = generator.standard_normal(shape, dtype=np.float32)
    values *= np.float32(std)
    return values
