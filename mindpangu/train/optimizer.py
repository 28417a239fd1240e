"""AdamW for dense parameters: compiled, in place on the device (`ascend_ops.dense_adam`).

Data-parallel ranks may divide the update. `ascend_ops.expert_adam` updates the experts.
"""

from collections.abc import Mapping

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, ops

from ascend_ops.dense_adam import dense_adam, squared_norm, update_scalars
from ascend_ops.waiting import settle, wait_for
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
        all_reduce, reduce_scatter, pull_rows, apply, push_rows: the compiled functions behind `reduce` and `update`,
            for offline compilation. `pull_rows` and `push_rows` are only for divided parameters.

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
        weights = ParameterTuple([rows_of.get(name, p) for name, p in parameters.items()])
        moments1 = ParameterTuple(list(self.moment1.values()))
        moments2 = ParameterTuple(list(self.moment2.values()))
        decays = tuple(is_decayed(name) for name in parameters)
        # number of ranks that hold the same gradient
        num_holders = [copies.get(name, 1) * (1 if self.divided[name] else group.size) for name in parameters]
        factors = Tensor(np.array([1 / count for count in num_holders], np.float32))
        for_each = ops.HyperMap()

        def pull(rows, weight):
            return ops.assign(rows, group.local_rows(weight))

        def push(weight, rows):
            return ops.assign(weight, group.all_gather(rows))

        # three functions, because nothing else in a graph may write what `dense_adam` updates in place

        @ms.jit
        def pull_rows():
            return for_each(pull, rows, full_weights)

        @ms.jit
        def apply(scalars, *gradients):
            return dense_adam(weights, moments1, moments2, gradients, decays, scalars)

        @ms.jit
        def push_rows():
            return for_each(push, full_weights, rows)

        @ms.jit
        def weighted_squared_norm(*gradients):
            return squared_norm(gradients, factors)

        @ms.jit
        def all_reduce(*gradients):
            return for_each(group.all_reduce, gradients)

        @ms.jit
        def reduce_scatter(*gradients):
            return for_each(group.reduce_scatter, gradients)

        self._squared_norm = weighted_squared_norm
        self._divides = len(full_weights) > 0
        self.pull_rows = pull_rows
        self.apply = apply
        self.push_rows = push_rows
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
        settle(gradients[0])
        return float(wait_for(self._squared_norm(*gradients))[0])

    def update(self, gradients: list[Tensor], step_count: int, learning_rate: float, gradient_scale: float) -> None:
        """Applies one update.

        Args:
            gradients: the result of `reduce`.
            step_count: number of applied updates including this one (≥ 1).
            learning_rate: learning rate of this step.
            gradient_scale: factor on all gradients.
        """
        beta1, beta2 = self.settings.betas
        scalars = update_scalars(
            step_count,
            learning_rate=learning_rate,
            beta1=beta1,
            beta2=beta2,
            eps=self.settings.eps,
            weight_decay=self.settings.weight_decay,
            gradient_scale=gradient_scale,
        )
        if self._divides:
            self.pull_rows()
        self.apply(Tensor(scalars), *gradients)
        if self._divides:
            self.push_rows()


def _zeros(shape: tuple[int, ...], name: str) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32)), name=name, requires_grad=False)
