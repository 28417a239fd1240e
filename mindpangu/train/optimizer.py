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
        decayed = tuple(is_decayed(name) for name in parameters)
        beta1, beta2 = (Tensor(beta, ms.float32) for beta in settings.betas)
        adam = ops.Adam()
        count = len(parameters)

        @ms.jit
        def apply(power1, power2, step_size, eps, keep, scale, *gradients):
            for i in range(count):
                if decayed[i]:
                    ops.assign(weights[i], weights[i] * keep)
                adam(
                    weights[i], moments1[i], moments2[i], power1, power2, step_size, beta1, beta2, eps,
                    gradients[i] * scale,
                )  # fmt: skip
            return step_size

        @ms.jit
        def squared_norm(*gradients):
            total = Tensor(0.0, ms.float32)
            for gradient in gradients:
                total = total + (gradient * gradient).sum()
            return total

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


def _zeros_like(parameter: Parameter, name: str) -> Parameter:
    return Parameter(Tensor(np.zeros(parameter.shape, np.float32)), name=name, requires_grad=False)
