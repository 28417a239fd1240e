"""AdamW of the dense parameters: compiled, in place on the device. The experts' twin is `ascend_ops.expert_adam`."""

from collections.abc import Mapping

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, ops

from mindpangu.config import OptimizerConfig
from mindpangu.parallel.data_parallel import DataGroup


def is_decayed(name: str) -> bool:
    """Weight decay spares biases, norms, and the scales and shifts of series."""
    return not name.endswith((".bias", ".gamma", ".beta", ".scale", ".shift"))


class DenseAdam:
    """AdamW with bias correction for a decoder's Parameters.

    Attributes:
        moment1, moment2: name → Parameter, float32, in the order of the parameters. Of a parameter that `group` divides
            they are this rank's rows.
        divided: name → whether `group` divides it.
        sum_whole, sum_rows, apply: the compiled functions that `reduce` and `update` call, for those who look at them.

    Args:
        group: the ranks that have the same parameters; None for this one alone.
        divide: update in parts what can be; False: every rank updates everything.
        copies: name → on how many ranks of a tensor group a parameter is the same (1 where they share it).
    """

    def __init__(
        self,
        parameters: dict[str, Parameter],
        settings: OptimizerConfig,
        group: DataGroup | None = None,
        divide: bool = True,
        copies: Mapping[str, int] | None = None,
    ):
        self.settings, self._group = settings, group or DataGroup()
        group, copies = self._group, copies or {}
        self.divided = {name: divide and group.divides(p.shape) for name, p in parameters.items()}
        shapes = {
            name: (p.shape[0] // group.size, *p.shape[1:]) if self.divided[name] else p.shape
            for name, p in parameters.items()
        }
        self.moment1 = {name: _zeros(shape, f"adam_m.{name}") for name, shape in shapes.items()}
        self.moment2 = {name: _zeros(shape, f"adam_v.{name}") for name, shape in shapes.items()}
        whole = ParameterTuple([p for name, p in parameters.items() if self.divided[name]])
        rows = ParameterTuple([_zeros(shapes[p.name], f"rows.{p.name}") for p in whole])
        # what Adam works on: the parameter itself, or a copy of this rank's rows of it
        rows_of = dict(zip([p.name for p in whole], rows, strict=True))
        updated = {name: rows_of.get(name, p) for name, p in parameters.items()}
        weights, moments1, moments2 = (
            ParameterTuple(list(each.values())) for each in (updated, self.moment1, self.moment2)
        )
        decayed = ParameterTuple([parameter for name, parameter in updated.items() if is_decayed(name)])
        beta1, beta2 = (Tensor(beta, ms.float32) for beta in settings.betas)
        for_each = ops.HyperMap()

        def pull(rows, weight):
            return ops.assign(rows, group.local_rows(weight))

        def push(weight, rows):
            return ops.assign(weight, group.all_gather(rows))

        @ms.jit
        def apply(power1, power2, step_size, eps, keep, scale, *gradients):
            if len(whole) > 0:
                for_each(pull, rows, whole)
            for_each(ops.partial(_decay, keep), decayed)
            adam = ops.partial(_adam, power1, power2, step_size, beta1, beta2, eps, scale)
            for_each(adam, weights, moments1, moments2, gradients)
            if len(whole) > 0:
                for_each(push, whole, rows)
            return step_size

        # how many ranks count the same numbers
        counted = [copies.get(name, 1) * (1 if self.divided[name] else group.size) for name in parameters]
        factors = Tensor(np.array([1 / count for count in counted], np.float32))

        @ms.jit
        def squared_norm(*gradients):
            return ops.addn(for_each(_sum_of_squares, gradients))

        @ms.jit
        def squared_norm_of_ranks(*gradients):
            return (ops.stack(for_each(_sum_of_squares, gradients)) * factors).sum()

        @ms.jit
        def sum_whole(*gradients):
            return for_each(group.all_reduce, gradients)

        @ms.jit
        def sum_rows(*gradients):
            return for_each(group.reduce_scatter, gradients)

        alone = all(count == 1 for count in counted)
        self.apply, self._squared_norm = apply, squared_norm if alone else squared_norm_of_ranks
        self.sum_whole, self.sum_rows = sum_whole, sum_rows

    def reduce(self, gradients: Mapping[str, Tensor]) -> list[Tensor]:
        """What `squared_norm` and `update` take: the sums over the ranks that have the same parameters, of what this
        rank updates. All of these ranks have to call it.

        Args:
            gradients: name → this rank's, in the order of the parameters.
        """
        if self._group.size == 1:
            return list(gradients.values())
        reduced = dict(gradients)
        for divided, add_up in ((False, self.sum_whole), (True, self.sum_rows)):
            names = [name for name in gradients if self.divided[name] == divided]
            if names:
                reduced.update(zip(names, add_up(*(gradients[name] for name in names)), strict=True))
        return list(reduced.values())

    def squared_norm(self, gradients: list[Tensor]) -> float:
        """Of what `reduce` returned; of each number that several ranks have, this rank's share. Summed over all ranks,
        it counts everything once."""
        return float(self._squared_norm(*gradients).asnumpy())

    def update(self, gradients: list[Tensor], step_count: int, learning_rate: float, gradient_scale: float) -> None:
        """One step. `step_count` counts the updates that were applied, this one included (≥ 1)."""
        beta1, beta2 = self.settings.betas
        # the kernel adds its epsilon to √v, not to √v̂: scale it by the same correction
        eps = self.settings.eps * np.sqrt(1 - beta2**step_count)
        keep = 1 - learning_rate * self.settings.weight_decay
        scalars = (beta1**step_count, beta2**step_count, learning_rate, eps, keep, gradient_scale)
        self.apply(*(Tensor(np.float32(value)) for value in scalars), *gradients)


# Maps over all parameters, not loops: compiling a loop nests one call into the next, and some 500 are too deep. A
# mapped function gets a graph's inputs as arguments (`partial`); it may not close over them.

_adam_in_place = ops.Adam()


def _decay(keep, weight):
    return ops.assign(weight, weight * keep)


def _adam(power1, power2, step_size, beta1, beta2, eps, scale, weight, moment1, moment2, gradient):
    return _adam_in_place(weight, moment1, moment2, power1, power2, step_size, beta1, beta2, eps, gradient * scale)


def _sum_of_squares(gradient):
    return (gradient * gradient).sum()


def _zeros(shape: tuple[int, ...], name: str) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32)), name=name, requires_grad=False)
