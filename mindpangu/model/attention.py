"""Multi-head causal attention, rotary positions for queries and keys, and the augmented shortcut."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindpangu.config import ModelConfig
from mindpangu.model.layers import Init, Linear
from mindpangu.model.precision import cast


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
        self.scale = self.head_size**-0.5
        self.compute_dtype = init.compute_dtype
        # the largest fp16 number is 65504: scale the queries before the product instead of the scores after it
        self.scale_queries = init.compute_dtype == ms.float16
        self.eod_reset = init.config.data.eod_reset
        self.rotation = Rotation(model) if model.position == "rope" else None
        self.query = Linear(init, f"{name}.query", hidden, hidden, init.std, "outputs")
        self.key = Linear(init, f"{name}.key", hidden, hidden, init.std, "outputs")
        self.value = Linear(init, f"{name}.value", hidden, hidden, init.std, "outputs")
        self.output = Linear(init, f"{name}.output", hidden, hidden, output_std, "inputs")
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.softmax = ops.Softmax(-1)
        self.future_SS = Tensor(np.triu(np.full((model.seq_length, model.seq_length), -1e9, np.float32), 1))
        self.index_S = Tensor(np.arange(model.seq_length, dtype=np.int32))

    def construct(self, query_TH, x_TH, positions_BS):
        key, value = self.keys_and_values(x_TH, positions_BS)
        return self.attend(query_TH, key, value, self.mask(positions_BS), positions_BS)

    def keys_and_values(self, x_TH, positions_BS):
        """Computes keys and values, each [B, N, S, K]: everything that later tokens need from these tokens."""
        key = self._heads(self.key(x_TH), positions_BS)
        value = self._heads(self.value(x_TH), positions_BS)
        return self._rotated(key, positions_BS), value

    def attend(self, query_TH, key, value, mask, positions_BS):
        """Attends from the tokens at `positions_BS` to keys and values [B, N, C, K], which may belong to other tokens.

        Args:
            mask: float32, added to the scores [B, N, S, C]: -1e9 where a query may not look, else 0.
        """
        return self.output(self.heads(query_TH, key, value, mask, positions_BS))

    def heads(self, query_TH, key, value, mask, positions_BS):
        """Returns the concatenated heads [T, N·K], the input of the output matrix. Arguments as for `attend`."""
        query = self._rotated(self._heads(self.query(query_TH), positions_BS), positions_BS)
        if self.scale_queries:
            scores_BNSC = cast(self.scores(query * self.scale, key), ms.float32)
        else:
            scores_BNSC = cast(self.scores(query, key), ms.float32) * self.scale
        mixed = self.mix(cast(self.softmax(scores_BNSC + mask), self.compute_dtype), value)
        batch, heads, length, size = mixed.shape
        return mixed.transpose((0, 2, 1, 3)).reshape((batch * length, heads * size))

    def mask(self, positions_BS):
        """Returns -1e9 where a key comes after its query (or, with data.eod_reset, is in another document), else 0."""
        length = positions_BS.shape[1]
        future_SS = self.future_SS[:length, :length]
        return future_SS + self._other_documents(positions_BS) if self.eod_reset else future_SS

    def _heads(self, x_TH, positions_BS):
        batch, length = positions_BS.shape
        return x_TH.reshape((batch, length, self.num_heads, self.head_size)).transpose((0, 2, 1, 3))

    def _rotated(self, x_BNSK, positions_BS):
        return x_BNSK if self.rotation is None else self.rotation(x_BNSK, positions_BS)

    def _other_documents(self, positions_BS):
        """Returns [B, 1, S, S]: -1e9 where a key comes before the start of the query's document, else 0."""
        index_S = self.index_S[: positions_BS.shape[1]]
        start_BS = index_S - positions_BS
        earlier_BSS = index_S.reshape((1, 1, -1)) < ops.expand_dims(start_BS, 2)
        return ops.expand_dims(ops.cast(earlier_BSS, self.future_SS.dtype) * -1e9, 1)


class Rotation(nn.Cell):
    """Rotary positions (RoFormer, arXiv 2104.09864): element i of the first half of a head and element i of its second
    half form a pair, which is rotated by position · theta^(−2i/K)."""

    def __init__(self, model: ModelConfig):
        super().__init__(auto_prefix=False)
        size = model.hidden_size // model.num_heads
        angles = np.outer(np.arange(model.seq_length), model.rope_theta ** (-np.arange(0, size, 2) / size))
        self.cosine = Tensor(np.cos(angles).astype(np.float32))
        self.sine = Tensor(np.sin(angles).astype(np.float32))
        self.halves = ops.Split(3, 2)

    def construct(self, x_BNSK, positions_BS):
        cosine = ops.expand_dims(ops.gather(self.cosine, positions_BS, 0), 1)
        sine = ops.expand_dims(ops.gather(self.sine, positions_BS, 0), 1)
        first, second = self.halves(cast(x_BNSK, ms.float32))
        turned = ops.concat((first * cosine - second * sine, second * cosine + first * sine), 3)
        return cast(turned, x_BNSK.dtype)


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
