"""Data parallelism: ranks that hold the same parameters and train on different samples.

Gradients are summed over the group. If the group size divides a tensor's first axis, the update is divided too (ZeRO
stage 1): each rank reduce-scatters the gradients, keeps Adam's moments for its own rows, updates these rows, and
all-gathers the result. The moments then take 1 / size of the memory, for the same traffic. All other tensors are small
and are updated on every rank.
"""

import mindspore as ms
from mindspore import nn, ops


class DataGroup(nn.Cell):
    """The collectives of one group. They are called inside compiled functions and are not differentiated.

    Attributes:
        rank, size: rank of this process in the group, and size of the group.

    Args:
        name: name of the group, which must have been created; not needed if `size` is 1.
    """

    def __init__(self, name: str = "", rank: int = 0, size: int = 1):
        super().__init__(auto_prefix=False)
        self.rank = rank
        self.size = size
        self.on_cpu = ms.get_context("device_target") == "CPU"
        if size > 1:
            self._all_reduce = ops.AllReduce(group=name)
            self._all_gather = None if self.on_cpu else ops.AllGather(group=name)
            self._reduce_scatter = None if self.on_cpu else ops.ReduceScatter(group=name)

    def divides(self, shape: tuple[int, ...]) -> bool:
        """True if the update of a tensor of this shape is divided among the ranks."""
        return self.size > 1 and len(shape) > 1 and shape[0] % self.size == 0

    def all_reduce(self, x):
        """Sums x over the ranks."""
        return self._all_reduce(x) if self.size > 1 else x

    def local_rows(self, x):
        """Returns this rank's rows of x."""
        rows = x.shape[0] // self.size
        return x[self.rank * rows : (self.rank + 1) * rows]

    def reduce_scatter(self, x):
        """Sums x over the ranks and returns this rank's rows of the sum."""
        return self.local_rows(self._all_reduce(x)) if self.on_cpu else self._reduce_scatter(x)

    def all_gather(self, rows):
        """Concatenates the rows of all ranks."""
        if not self.on_cpu:
            return self._all_gather(rows)
        nothing = ops.zeros_like(rows)
        return self._all_reduce(
            ops.concat((nothing,) * self.rank + (rows,) + (nothing,) * (self.size - 1 - self.rank), 0)
        )
