"""The dense layers of a Transformer block: norms, matrices, feed-forward network. Attention is in `attention.py`.

Cells take rows x_TH and use `ops.*` only, which runs on the CPU and on Ascend. Every parameter is drawn from a random
stream named after it, so a model's initial weights do not depend on the order in which it is built. `precision.py`
describes which number format computes what.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from ascend_ops import norm
from ascend_ops.grouped_ffn import composed, feed_forward
from ascend_ops.linear import linear
from mindpangu.config import Config, ModelConfig
from mindpangu.model.initialization import initial_series, network_tensors, normal
from mindpangu.model.precision import cast, compute_dtype
from mindpangu.parallel.collectives import TensorGroup
from mindpangu.parallel.sharding import TensorSlice


class Init:
    """Creates the parameters of one model, all in fp32, and holds the settings that its layers share.

    Attributes:
        config: the configuration.
        compute_dtype: number format of the matrix products.
        std: standard deviation of initial weights.
        slices: name → this rank's slice of the tensor.
    """

    def __init__(self, config: Config, tensor: TensorGroup | None = None):
        self.config = config
        self.compute_dtype = compute_dtype(config)
        self._tensor = tensor or TensorGroup()
        self.slices: dict[str, TensorSlice] = {}
        self.std = config.model.init_std

    @property
    def tensor(self) -> TensorGroup:
        """The ranks that share the matrices, with new Cells at each access."""
        return self._tensor.with_own_cells()

    def weight(
        self, name: str, *shape: int, std: float | None = None, axis: int | None = None, held: TensorSlice | None = None
    ) -> Parameter:
        """Draws a whole tensor and creates a parameter from this rank's slice.

        Args:
            axis: the axis that the ranks divide equally; None if every rank holds the whole tensor.
            held: this rank's slice, instead of an equal share along `axis`.
        """
        values = normal(self.config.training.seed, name, shape, self.std if std is None else std)
        return self._parameter(name, values, axis, held)

    def constant(self, name: str, size: int, value: float, axis: int | None = None) -> Parameter:
        """Creates a parameter whose elements all have the same value."""
        return self._parameter(name, np.full(size, value, np.float32), axis)

    def given(self, name: str, values: np.ndarray, axis: int | None = None) -> Parameter:
        """Creates a parameter with given values."""
        return self._parameter(name, values, axis)

    def _parameter(self, name: str, values: np.ndarray, axis: int | None, held: TensorSlice | None = None) -> Parameter:
        if held is None:
            held = TensorSlice.equal(values.shape, axis, self.tensor.rank, self.tensor.size)
        self.slices[name] = held
        return Parameter(Tensor(held.of(values)), name=name)


def make_norm(init: Init, name: str) -> nn.Cell:
    """Builds the norm selected by `model.norm`."""
    return RMSNorm(init, name) if init.config.model.norm == "rmsnorm" else LayerNorm(init, name)


class RMSNorm(nn.Cell):
    """x / √(mean(x²) + ε) · gamma (arXiv 1910.07467)."""

    def __init__(self, init: Init, name: str):
        super().__init__(auto_prefix=False)
        self.gamma = init.constant(f"{name}.gamma", init.config.model.hidden_size, 1.0)
        self.epsilon = init.config.model.layernorm_epsilon

    def construct(self, x_TH, addend_TH=None):
        """Returns the norm; with an addend the sum and its norm."""
        if addend_TH is None:
            return norm.rms_norm(x_TH, self.gamma, self.epsilon)
        return norm.add_rms_norm(x_TH, addend_TH, self.gamma, self.epsilon)


class LayerNorm(nn.Cell):
    """(x − mean(x)) / √(variance(x) + ε) · gamma + beta."""

    def __init__(self, init: Init, name: str):
        super().__init__(auto_prefix=False)
        size = init.config.model.hidden_size
        self.gamma = init.constant(f"{name}.gamma", size, 1.0)
        self.beta = init.constant(f"{name}.beta", size, 0.0)
        self.epsilon = init.config.model.layernorm_epsilon

    def construct(self, x_TH, addend_TH=None):
        """Returns the norm; with an addend the sum and its norm."""
        if addend_TH is None:
            return norm.layer_norm(x_TH, self.gamma, self.beta, self.epsilon)
        return norm.add_layer_norm(x_TH, addend_TH, self.gamma, self.beta, self.epsilon)


class Linear(nn.Cell):
    """x · weight + bias, with weight [in, out]; no bias if model.biases is False.

    Args:
        sharded: what the ranks of the tensor group divide: "outputs" (each computes columns of the result), "inputs"
            (each has columns of x, and the results are all-reduced), or "" (nothing).
    """

    def __init__(self, init: Init, name: str, inputs: int, outputs: int, std: float, sharded: str = ""):
        super().__init__(auto_prefix=False)
        axis = {"inputs": 0, "outputs": 1, "": None}[sharded]
        self.weight = init.weight(f"{name}.weight", inputs, outputs, std=std, axis=axis)
        self.bias = None
        if init.config.model.biases:
            self.bias = init.constant(f"{name}.bias", outputs, 0.0, axis=0 if sharded == "outputs" else None)
        self.tensor = init.tensor if sharded == "inputs" else TensorGroup()
        self.compute_dtype = init.compute_dtype

    def construct(self, x_TI):
        weight = self.matrix()
        if self.tensor.size == 1:
            return linear(x_TI, weight, self.bias)
        product = self.tensor.reduce_from(linear(x_TI, weight))
        if self.bias is None:
            return product
        return cast(cast(product, ms.float32) + self.bias, self.compute_dtype)

    def matrix(self):
        """Returns the weight in the compute dtype."""
        return cast(self.weight, self.compute_dtype)


class FeedForward(nn.Cell):
    """The feed-forward network of a dense layer. Experts compute the same formula; see `ascend_ops.grouped_ffn`."""

    def __init__(self, init: Init, name: str, output_std: float):
        super().__init__(auto_prefix=False)
        model = init.config.model
        hidden = model.hidden_size
        inner = model.ffn_hidden_size
        self.tensors = network_tensors(model)
        self.activation = activation_function(model)
        self.has_biases = model.biases
        self.gate = None
        if "gate" in self.tensors:
            self.gate = Linear(init, f"{name}.gate", hidden, inner, init.std, "outputs")
        self.up = Linear(init, f"{name}.up", hidden, inner, init.std, "outputs")
        self.scale = None
        self.shift = None
        if "scale" in self.tensors:
            series = initial_series(model.series_terms, inner)
            self.scale = init.given(f"{name}.series.scale", series["scale"], axis=1)
            self.shift = init.given(f"{name}.series.shift", series["shift"], axis=1)
        self.down = Linear(init, f"{name}.down", inner, hidden, output_std, "inputs")
        self.tensor = init.tensor
        self.compute_dtype = init.compute_dtype

    def construct(self, x_TH):
        if self.tensor.size == 1:
            return feed_forward(x_TH, self._weights(), self.tensors, self.activation)
        return self.down(self.neurons(x_TH))

    def neurons(self, x_TH):
        """Returns the neurons [T, F], the input of the last matrix."""
        return composed.neurons(self.tensor.copy_to(x_TH), self._weights(), self.tensors, self.activation)

    # no loops: in a loop over Cells with an `if`, MindSpore 2.10 may take the first Cell's Parameter for all of them

    def _weights(self):
        """Returns the tensors in the order of `network_tensors`: matrices and series in the compute dtype."""
        weights = ()
        if self.gate is not None:
            weights = (*weights, self.gate.matrix())
            if self.has_biases:
                weights = (*weights, self.gate.bias)
        weights = (*weights, self.up.matrix())
        if self.has_biases:
            weights = (*weights, self.up.bias)
        if self.scale is not None:
            weights = (*weights, cast(self.scale, self.compute_dtype), cast(self.shift, self.compute_dtype))
        weights = (*weights, self.down.matrix())
        if self.has_biases:
            weights = (*weights, self.down.bias)
        return weights


def activation_function(model: ModelConfig) -> str:
    """Returns the name of the model's activation in `ascend_ops.grouped_ffn`."""
    return {"swiglu": "silu", "fast_gelu": "fast_gelu"}[model.activation]
