"""Bits per byte: a loss that can be compared between tokenizers."""

import math


def bits_per_byte(loss: float, num_tokens: int, num_bytes: int) -> float:
    """Converts a mean loss in nats per token into bits per byte of the text: loss / ln 2 · tokens / bytes."""
    return loss / math.log(2) * num_tokens / num_bytes
