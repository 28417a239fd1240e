"""The dense parts of a Transformer layer: LayerNorm, attention, feed-forward network (PanGu-α, pre-norm).

Cells take rows x_TH (tokens by hidden) and use `ops.*` only, which runs on the CPU and on Ascend alike.
Every parameter is drawn from a random stream of its own name, so a model's initial weights do not depend
on the order in which its parts are built; `precision.py` says which number format computes what.
Shapes: B batch, S sequence, T = B·S, H hidden, N heads, K head, F FFN.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ascend_ops.grouped_ffn import fast_gelu
from mindpangu.config import Config
from mindpangu.model.initialization import normal
from mindpangu.model.precision import cast, compute_dtype
from mindpangu.parallel.collectives import TensorGroup
from mindpangu.parallel.sharding import Part


class Init:
    """Makes the parameters of one model: names, shapes and initial values, all fp32; says what they compute in.

    Attributes:
        tensor: the ranks that share the matrices, in Cells of its own each time it is asked for. A matrix is drawn
            whole, and each of them takes its part.
        parts: name → which part of the tensor this rank has.
    """

    def __init__(self, config: Config, tensor: TensorGroup | None = None):
        self.config, self.compute_dtype = config, compute_dtype(config)
        self._tensor = tensor or TensorGroup()
        self.parts: dict[str, Part] = {}
        self.std = config.model.init_std
        # residual branches start smaller, so that the sum over layers keeps its scale (ours, after GPT-2)
        self.output_std = self.std / np.sqrt(2 * config.model.num_layers)

    @property
    def tensor(self) -> TensorGroup:
        return self._tensor.apart()

    def weight(
        self, name: str, *shape: int, std: float | None = None, axis: int | None = None, part: Part | None = None
    ) -> Parameter:
        """A parameter with random values: the whole tensor, an equal part along an axis, or a part that is given."""
        values = normal(self.config.training.seed, name, shape, self.std if std is None else std)
        return self._parameter(name, values, axis, part)

    def constant(self, name: str, size: int, value: float, axis: int | None = None) -> Parameter:
        return self._parameter(name, np.full(size, value, np.float32), axis)

    def _parameter(self, name: str, values: np.ndarray, axis: int | None, part: Part | None = None) -> Parameter:
        if part is None:
            part = Part.equal(values.shape, axis, self.tensor.rank, self.tensor.size)
        self.parts[name] = part
        return Parameter(Tensor(part.of(values)), name=name)


class LayerNorm(nn.Cell):
    def __init__(self, init: Init, name: str):
        super().__init__(auto_prefix=False)
        size = init.config.model.hidden_size
        self.gamma = init.constant(f"{name}.gamma", size, 1.0)
        self.beta = init.constant(f"{name}.beta", size, 0.0)
        self.normalize = ops.LayerNorm(-1, -1, init.config.model.layernorm_epsilon)
        self.compute_dtype = init.compute_dtype

    def construct(self, x_TH):
        return cast(self.normalize(cast(x_TH, ms.float32), self.gamma, self.beta)[0], self.compute_dtype)


class Linear(nn.Cell):
    """x · weight + bias, weight [in, out].

    Args:
        shared: what the ranks of the tensor group divide: "outputs" (each has columns of the result), "inputs" (each
            has columns of x, and the results are summed), or "" (nothing).
    """

    def __init__(self, init: Init, name: str, inputs: int, outputs: int, std: float, shared: str = ""):
        super().__init__(auto_prefix=False)
        axis = {"inputs": 0, "outputs": 1, "": None}[shared]
        self.weight = init.weight(f"{name}.weight", inputs, outputs, std=std, axis=axis)
        self.bias = init.constant(f"{name}.bias", outputs, 0.0, axis=0 if shared == "outputs" else None)
        self.tensor = init.tensor if shared == "inputs" else TensorGroup()
        self.compute_dtype = init.compute_dtype

    def construct(self, x):
        product = self.tensor.summed(ops.matmul(x, cast(self.weight, self.compute_dtype)))
        return cast(cast(product, ms.float32) + self.bias, self.compute_dtype)


class Attention(nn.Cell):
    """Multi-head causal attention. Queries may come from elsewhere than keys and values (the query layer).

    The ranks of a tensor group divide the heads.
    """

    def __init__(self, init: Init, name: str):
        super().__init__(auto_prefix=False)
        model = init.config.model
        hidden = model.hidden_size
        self.num_heads, self.head_size = model.num_heads // init.tensor.size, hidden // model.num_heads
        self.scale = self.head_size**-0.5
        self.compute_dtype = init.compute_dtype
        # fp16 ends at 65504: scale the queries, before the product, instead of the scores after it
        self.scale_queries = init.compute_dtype == ms.float16
        self.eod_reset = init.config.data.eod_reset
        self.query = Linear(init, f"{name}.query", hidden, hidden, init.std, "outputs")
        self.key = Linear(init, f"{name}.key", hidden, hidden, init.std, "outputs")
        self.value = Linear(init, f"{name}.value", hidden, hidden, init.std, "outputs")
        self.output = Linear(init, f"{name}.output", hidden, hidden, init.output_std, "inputs")
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.softmax = ops.Softmax(-1)
        self.future_SS = Tensor(np.triu(np.full((model.seq_length, model.seq_length), -1e9, np.float32), 1))
        self.index_S = Tensor(np.arange(model.seq_length, dtype=np.int32))

    def construct(self, query_TH, x_TH, positions_BS):
        batch, length = positions_BS.shape
        query = self._heads(self.query(query_TH), batch, length)
        key, value = self.keys_and_values(x_TH, batch, length)
        return self._attend(query, key, value, self.unseen(positions_BS))

    def keys_and_values(self, x_TH, batch, length):
        """Both [B, N, S, K]: what later tokens need of these."""
        return self._heads(self.key(x_TH), batch, length), self._heads(self.value(x_TH), batch, length)

    def attend(self, query_TH, key, value, unseen, batch):
        """The same with keys and values [B, N, C, K] from elsewhere, of C tokens that need not be the queries' own.

        Args:
            unseen: float32, to be added to the scores [B, N, S, C]: -1e9 where a query may not look, else 0.
        """
        return self._attend(self._heads(self.query(query_TH), batch, -1), key, value, unseen)

    def unseen(self, positions_BS):
        """-1e9 where a key stands behind its query (or in another document, with data.eod_reset), else 0."""
        length = positions_BS.shape[1]
        future_SS = self.future_SS[:length, :length]
        return future_SS + self._other_documents(positions_BS) if self.eod_reset else future_SS

    def _attend(self, query, key, value, unseen):
        if self.scale_queries:
            scores_BNSC = cast(self.scores(query * self.scale, key), ms.float32)
        else:
            scores_BNSC = cast(self.scores(query, key), ms.float32) * self.scale
        mixed = self.mix(cast(self.softmax(scores_BNSC + unseen), self.compute_dtype), value)
        batch, heads, length, size = mixed.shape
        return self.output(mixed.transpose((0, 2, 1, 3)).reshape((batch * length, heads * size)))

    def _heads(self, x_TH, batch, length):
        return x_TH.reshape((batch, length, self.num_heads, self.head_size)).transpose((0, 2, 1, 3))

    def _other_documents(self, positions_BS):
        """[B, 1, S, S]: -1e9 where a key stands before the start of the query's document."""
        index_S = self.index_S[: positions_BS.shape[1]]
        start_BS = index_S - positions_BS
        earlier_BSS = index_S.reshape((1, 1, -1)) < ops.expand_dims(start_BS, 2)
        return ops.expand_dims(ops.cast(earlier_BSS, self.future_SS.dtype) * -1e9, 1)


class FeedForward(nn.Cell):
    def __init__(self, init: Init, name: str):
        super().__init__(auto_prefix=False)
        hidden, inner = init.config.model.hidden_size, init.config.model.ffn_hidden_size
        self.up = Linear(init, f"{name}.up", hidden, inner, init.std, "outputs")
        self.down = Linear(init, f"{name}.down", inner, hidden, init.output_std, "inputs")
        self.tensor = init.tensor

    def construct(self, x_TH):
        return self.down(fast_gelu(self.up(self.tensor.used(x_TH))))
