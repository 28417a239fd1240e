"""Multi-head causal attention, rotary positions for queries and keys, and the augmented shortcut."""

import numpy as np
from mindspore import Tensor, nn, ops

from ascend_ops.causal_attention import causal_attention, composed
from ascend_ops.linear import linears
from mindpangu.config import ModelConfig
from mindpangu.model.layers import Init, Linear


class Attention(nn.Cell):
    """Multi-head causal attention. Queries may have another source than keys and values (the query layer).

    The ranks of a tensor group divide the heads.

    Args:
        output_std: standard deviation of the initial output matrix.
    """

    def __init__(self, init: Init, name: str, output_std: float):
        super().__init__(auto_prefix=False)
        model = init.config.model
        hidden = model.hidden_size
        self.num_heads = model.num_heads // init.tensor.size
        self.head_size = hidden // model.num_heads
        self.compute_dtype = init.compute_dtype
        self.has_biases = model.biases
        self.eod_reset = init.config.data.eod_reset
        self.angles = rotary_angles(model) if model.position == "rope" else ()
        self.query = Linear(init, f"{name}.query", hidden, hidden, init.std, "outputs")
        self.key = Linear(init, f"{name}.key", hidden, hidden, init.std, "outputs")
        self.value = Linear(init, f"{name}.value", hidden, hidden, init.std, "outputs")
        self.output = Linear(init, f"{name}.output", hidden, hidden, output_std, "inputs")
        self.index_S = Tensor(np.arange(model.seq_length, dtype=np.int32))

    def construct(self, x_TH, positions_BS, query_TH=None):
        """Returns the output of attention. `query_TH`: the source of the queries, if it is not x_TH."""
        return self.output(self.heads(*self.projections(x_TH, query_TH), positions_BS))

    def projections(self, x_TH, query_TH=None):
        """Returns queries, keys and values, each [T, N·K]."""
        # spelled out: in a loop over Cells, MindSpore 2.10 may take the first Cell's Parameter for all of them
        weights = (self.key.matrix(), self.value.matrix())
        biases = (self.key.bias, self.value.bias) if self.has_biases else ()
        if query_TH is not None:
            return (self.query(query_TH), *linears(x_TH, weights, biases))
        weights = (self.query.matrix(), *weights)
        return linears(x_TH, weights, (self.query.bias, *biases) if self.has_biases else ())

    def heads(self, query_TH, key_TH, value_TH, positions_BS):
        """Lets tokens attend to each other, and rotates queries and keys first if the model has rotary positions.

        Returns:
            The concatenated heads [T, N·K], the input of the output matrix.
        """
        rotation = (positions_BS, *self.angles) if len(self.angles) > 0 else ()
        return causal_attention(query_TH, key_TH, value_TH, self.first_keys(positions_BS), self.num_heads, rotation)

    def first_keys(self, positions_BS):
        """Returns, for every token, the index of the first key that it may look at: 0 or, with data.eod_reset, that of
        its document's first token."""
        if not self.eod_reset:
            return ops.zeros_like(positions_BS)
        return self.index_S[: positions_BS.shape[1]] - positions_BS

    def cached_heads(self, query_TH, key, value, mask, positions_BS):
        """Attends from the tokens at `positions_BS` to cached keys and values [B, N, C, K].

        Args:
            key: rotated keys.
            mask: float32, added to the scores [B, N, S, C]: -1e9 where a query may not look, else 0.

        Returns:
            The concatenated heads [T, N·K], the input of the output matrix.
        """
        return composed.attend(self.split_and_rotate(query_TH, positions_BS), key, value, mask)

    def split(self, x_TH, positions_BS):
        """Splits rows [T, N·K] into heads [B, N, S, K], the shape of the cache."""
        return composed.split_heads(x_TH, positions_BS, self.num_heads)

    def split_and_rotate(self, x_TH, positions_BS):
        """Splits queries or keys into heads and rotates them, if the model has rotary positions."""
        heads = self.split(x_TH, positions_BS)
        return composed.rotate(heads, positions_BS, *self.angles) if len(self.angles) > 0 else heads


def rotary_angles(model: ModelConfig) -> tuple[Tensor, Tensor]:
    """Returns cosine and sine of every position's angles, float32 [C, K/2]: position · theta^(−2i/K) (RoFormer, arXiv
    2104.09864)."""
    size = model.hidden_size // model.num_heads
    angles = np.outer(np.arange(model.seq_length), model.rope_theta ** (-np.arange(0, size, 2) / size))
    return Tensor(np.cos(angles).astype(np.float32)), Tensor(np.sin(angles).astype(np.float32))


class AugmentedShortcut(nn.Cell):
    """gelu(h · down) · up, parallel to attention, with a bottleneck of H/r (PanGu-π, arXiv 2312.17276, eq. 4 to 6).

    It is small, so every rank of a tensor group holds all of it and computes the entire output.
    """

    def __init__(self, init: Init, name: str, output_std: float):
        super().__init__(auto_prefix=False)
        model = init.config.model
        hidden = model.hidden_size
        narrow = hidden // model.shortcut_reduction
        self.down = Linear(init, f"{name}.down", hidden, narrow, init.std)
        self.up = Linear(init, f"{name}.up", narrow, hidden, output_std)

    def construct(self, h_TH):
        return self.up(self.bottleneck(h_TH))

    def bottleneck(self, h_TH):
        """Returns the bottleneck [T, H/r], the input of the second matrix."""
        return gelu(self.down(h_TH))


def gelu(u):
    """Computes ½ u (1 + tanh(√(2/π) (u + 0.044715 u³))) with a sigmoid, because tanh is off by 1e-4 on the CPU."""
    return u * ops.sigmoid(1.5957691216057308 * (u + 0.044715 * u * u * u))
