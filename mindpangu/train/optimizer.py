"""AdamW of the dense parameters: compiled, in place on the device. The experts' twin is `ascend_ops.expert_adam`."""

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, ops

from mindpangu.config import OptimizerConfig


def is_decayed(name: str) -> bool:
    """Weight decay spares biases and LayerNorms."""
    return not name.endswith((".bias", ".gamma", ".beta"))


class DenseAdam:
    """AdamW with bias correction for a decoder's Parameters.

    Attributes:
        moment1, moment2: name → Parameter, float32, in the order of the parameters.
    """

    def __init__(self, parameters: dict[str, Parameter], settings: OptimizerConfig):
        self.settings = settings
        self.moment1 = {name: _zeros_like(p, f"adam_m.{name}") for name, p in parameters.items()}
        self.moment2 = {name: _zeros_like(p, f"adam_v.{name}") for name, p in parameters.items()}
        weights, moments1, moments2 = (
            ParameterTuple(list(group.values())) for group in (parameters, self.moment1, self.moment2)
        )
        decayed = ParameterTuple([parameter for name, parameter in parameters.items() if is_decayed(name)])
        beta1, beta2 = (Tensor(beta, ms.float32) for beta in settings.betas)
        for_each = ops.HyperMap()

        @ms.jit
        def apply(power1, power2, step_size, eps, keep, scale, *gradients):
            for_each(ops.partial(_decay, keep), decayed)
            adam = ops.partial(_adam, power1, power2, step_size, beta1, beta2, eps, scale)
            for_each(adam, weights, moments1, moments2, gradients)
            return step_size

        @ms.jit
        def squared_norm(*gradients):
            return ops.addn(for_each(_sum_of_squares, gradients))

        self._apply, self._squared_norm = apply, squared_norm

    def squared_norm(self, gradients: list[Tensor]) -> float:
        return float(self._squared_norm(*gradients).asnumpy())

    def update(self, gradients: list[Tensor], step_count: int, learning_rate: float, gradient_scale: float) -> None:
        """One step. `step_count` counts the updates that were applied, this one included (≥ 1)."""
        beta1, beta2 = self.settings.betas
        # the kernel adds its epsilon to √v, not to √v̂: scale it by the same correction
        eps = self.settings.eps * np.sqrt(1 - beta2**step_count)
        keep = 1 - learning_rate * self.settings.weight_decay
        scalars = (beta1**step_count, beta2**step_count, learning_rate, eps, keep, gradient_scale)
        self._apply(*(Tensor(np.float32(value)) for value in scalars), *gradients)


# Maps over all parameters, not loops: compiling a loop nests one call into the next, and some 500 are too deep. A
# function that is mapped may have no free variables but globals.

_adam_in_place = ops.Adam()


def _decay(keep, weight):
    return ops.assign(weight, weight * keep)


def _adam(power1, power2, step_size, beta1, beta2, eps, scale, weight, moment1, moment2, gradient):
    return _adam_in_place(weight, moment1, moment2, power1, power2, step_size, beta1, beta2, eps, gradient * scale)


def _sum_of_squares(gradient):
    return (gradient * gradient).sum()


def _zeros_like(parameter: Parameter, name: str) -> Parameter:
    return Parameter(Tensor(np.zeros(parameter.shape, np.float32)), name=name, requires_grad=False)
