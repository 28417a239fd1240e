"""AdamW for dense parameters: compiled, in place on the device. `ascend_ops.expert_adam` updates the experts."""

from collections.abc import Mapping

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, ops

from mindpangu.config import OptimizerConfig
from mindpangu.parallel.data_parallel import DataGroup


def is_decayed(name: str) -> bool:
    """True if a parameter has weight decay: all do except biases, norms, and the scales and shifts of series."""
    return not name.endswith((".bias", ".gamma", ".beta", ".scale", ".shift"))


class DenseAdam:
    """AdamW with bias correction for a decoder's Parameters.

    Attributes:
        moment1, moment2: name → Parameter, float32, in the order of the parameters. If the ranks of `group` divide the
            update of a parameter, they hold this rank's rows.
        divided: name → whether the ranks of `group` divide the update.
        all_reduce, reduce_scatter, apply: the compiled functions behind `reduce` and `update`, for offline compilation.

    Args:
        group: the ranks that have the same parameters; None for this rank alone.
        divide: True to divide the update of every parameter that can be divided; False for a full update on every rank.
        copies: name → number of ranks of a tensor group that hold the same copy of a parameter (1 if they divide it).
    """

    def __init__(
        self,
        parameters: dict[str, Parameter],
        settings: OptimizerConfig,
        group: DataGroup | None = None,
        divide: bool = True,
        copies: Mapping[str, int] | None = None,
    ):
        group = group or DataGroup()
        copies = copies or {}
        self.settings = settings
        self._group = group
        self.divided = {name: divide and group.divides(p.shape) for name, p in parameters.items()}
        shapes = {
            name: (p.shape[0] // group.size, *p.shape[1:]) if self.divided[name] else p.shape
            for name, p in parameters.items()
        }
        self.moment1 = {name: _zeros(shape, f"adam_m.{name}") for name, shape in shapes.items()}
        self.moment2 = {name: _zeros(shape, f"adam_v.{name}") for name, shape in shapes.items()}
        full_weights = ParameterTuple([p for name, p in parameters.items() if self.divided[name]])
        rows = ParameterTuple([_zeros(shapes[p.name], f"rows.{p.name}") for p in full_weights])
        # Adam updates the parameter itself or, if it is divided, a copy of this rank's rows
        rows_of = dict(zip([p.name for p in full_weights], rows, strict=True))
        updated = {name: rows_of.get(name, p) for name, p in parameters.items()}
        weights = ParameterTuple(list(updated.values()))
        moments1 = ParameterTuple(list(self.moment1.values()))
        moments2 = ParameterTuple(list(self.moment2.values()))
        decayed = ParameterTuple([parameter for name, parameter in updated.items() if is_decayed(name)])
        beta1, beta2 = (Tensor(beta, ms.float32) for beta in settings.betas)
        for_each = ops.HyperMap()

        def pull(rows, weight):
            return ops.assign(rows, group.local_rows(weight))

        def push(weight, rows):
            return ops.assign(weight, group.all_gather(rows))

        @ms.jit
        def apply(power1, power2, step_size, eps, keep, scale, *gradients):
            if len(full_weights) > 0:
                for_each(pull, rows, full_weights)
            for_each(ops.partial(_decay, keep), decayed)
            adam = ops.partial(_adam, power1, power2, step_size, beta1, beta2, eps, scale)
            for_each(adam, weights, moments1, moments2, gradients)
            if len(full_weights) > 0:
                for_each(push, full_weights, rows)
            return step_size

        # number of ranks that hold the same gradient
        num_holders = [copies.get(name, 1) * (1 if self.divided[name] else group.size) for name in parameters]
        factors = Tensor(np.array([1 / count for count in num_holders], np.float32))

        @ms.jit
        def squared_norm(*gradients):
            return ops.addn(for_each(_sum_of_squares, gradients))

        @ms.jit
        def weighted_squared_norm(*gradients):
            return (ops.stack(for_each(_sum_of_squares, gradients)) * factors).sum()

        @ms.jit
        def all_reduce(*gradients):
            return for_each(group.all_reduce, gradients)

        @ms.jit
        def reduce_scatter(*gradients):
            return for_each(group.reduce_scatter, gradients)

        held_once = all(count == 1 for count in num_holders)
        self._squared_norm = squared_norm if held_once else weighted_squared_norm
        self.apply = apply
        self.all_reduce = all_reduce
        self.reduce_scatter = reduce_scatter

    def reduce(self, gradients: Mapping[str, Tensor]) -> list[Tensor]:
        """All-reduces (or reduce-scatters) the gradients and returns the part that this rank updates.

        All ranks that have the same parameters must call it.

        Args:
            gradients: name → this rank's gradient, in the order of the parameters.
        """
        if self._group.size == 1:
            return list(gradients.values())
        reduced = dict(gradients)
        for divided, collective in ((False, self.all_reduce), (True, self.reduce_scatter)):
            names = [name for name in gradients if self.divided[name] == divided]
            if names:
                reduced.update(zip(names, collective(*(gradients[name] for name in names)), strict=True))
        return list(reduced.values())

    def squared_norm(self, gradients: list[Tensor]) -> float:
        """Returns this rank's contribution to the squared gradient norm. Summed over ranks, every element counts once.

        Args:
            gradients: the result of `reduce`.
        """
        return float(self._squared_norm(*gradients).asnumpy())

    def update(self, gradients: list[Tensor], step_count: int, learning_rate: float, gradient_scale: float) -> None:
        """Applies one update.

        Args:
            gradients: the result of `reduce`.
            step_count: number of applied updates including this one (≥ 1).
            learning_rate: learning rate of this step.
            gradient_scale: factor on all gradients.
        """
        beta1, beta2 = self.settings.betas
        # the kernel adds its epsilon to √v instead of √v̂: scale it by the same correction
        eps = self.settings.eps * np.sqrt(1 - beta2**step_count)
        keep = 1 - learning_rate * self.settings.weight_decay
        scalars = (beta1**step_count, beta2**step_count, learning_rate, eps, keep, gradient_scale)
        self.apply(*(Tensor(np.float32(value)) for value in scalars), *gradients)


# These functions are mapped over all parameters instead of being called in a loop: a compiled loop nests each call in
# the next, and about 500 calls nest too deeply. A mapped function must take inputs of the graph as arguments
# (`partial`) and must not close over them.

_adam_in_place = ops.Adam()


def _decay(keep, weight):
    return ops.assign(weight, weight * keep)


def _adam(power1, power2, step_size, beta1, beta2, eps, scale, weight, moment1, moment2, gradient):
    return _adam_in_place(weight, moment1, moment2, power1, power2, step_size, beta1, beta2, eps, gradient * scale)


def _sum_of_squares(gradient):
    return (gradient * gradient).sum()


def _zeros(shape: tuple[int, ...], name: str) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32)), name=name, requires_grad=False)
