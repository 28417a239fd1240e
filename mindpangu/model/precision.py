"""Mixed precision, after PanGu-α: which number format computes what.

    fp32            Parameters and their gradients, Adam, embeddings, norms, softmax, additions of a bias, loss
    compute dtype   matrix products, weighted sums of values, activations, residual stream, experts and their gradients

The compute dtype is `context.precision`; with fp32 both rows are the same and the graph has no cast. A Parameter is
cast where it is used, so its gradient comes back in fp32. Biases are added and embeddings are looked up before the
cast, because their gradients are sums over tokens, and the CPU accumulates the gradient of a gather in the gather's own
format: in fp16, 2048 + 1 is 2048.
"""

import mindspore as ms
import numpy as np
from mindspore import ops

from mindpangu.config import Config

_COMPUTE_DTYPES = {"fp32": ms.float32, "fp16": ms.float16, "bf16": ms.bfloat16}


def compute_dtype(config: Config) -> ms.dtype.Type:
    """Returns MindSpore's dtype of the matrix products and of the residual stream."""
    return _COMPUTE_DTYPES[config.context.precision]


def expert_dtype(config: Config) -> type[np.floating]:
    """Returns NumPy's dtype in which experts enter the compiled functions and their gradients come back."""
    return np.float16 if config.context.precision == "fp16" else np.float32


def cast(x, dtype):
    """Casts x to a dtype; returns x itself if it has that dtype."""
    return x if x.dtype == dtype else ops.cast(x, dtype)
