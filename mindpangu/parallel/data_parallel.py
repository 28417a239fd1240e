"""Ranks that have the same parameters and train on different samples: gradients are added up, updates divided.

A tensor whose first axis the group divides can be updated in parts: each rank has the sum of its rows of the gradients,
keeps Adam's moments of these rows, and all ranks join the new rows. So the moments take 1 / size of the memory, for
the same traffic (ZeRO, stage 1). Other tensors, small ones, are updated on all ranks alike.
"""

import mindspore as ms
from mindspore import nn, ops


class DataGroup(nn.Cell):
    """One group; its functions are for compiled functions and outside of differentiation.

    Attributes:
        rank, size: of this process in the group.

    Args:
        name: of a group that was created; not needed where size is 1.
    """

    def __init__(self, name: str = "", rank: int = 0, size: int = 1):
        super().__init__(auto_prefix=False)
        self.rank, self.size = rank, size
        self.on_cpu = ms.get_context("device_target") == "CPU"
        if size > 1:
            self.all_reduce = ops.AllReduce(group=name)
            self.all_gather = None if self.on_cpu else ops.AllGather(group=name)
            self.reduce_scatter = None if self.on_cpu else ops.ReduceScatter(group=name)

    def divides(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape is updated in parts."""
        return self.size > 1 and len(shape) > 1 and shape[0] % self.size == 0

    def sum(self, x):
        """The sum over the ranks, on all of them."""
        return self.all_reduce(x) if self.size > 1 else x

    def part(self, x):
        """This rank's rows."""
        rows = x.shape[0] // self.size
        return x[self.rank * rows : (self.rank + 1) * rows]

    def sum_part(self, x):
        """This rank's rows of the sum over the ranks."""
        return self.part(self.all_reduce(x)) if self.on_cpu else self.reduce_scatter(x)

    def join(self, rows):
        """The rows of all ranks."""
        if not self.on_cpu:
            return self.all_gather(rows)
        nothing = ops.zeros_like(rows)
        return self.all_reduce(
            ops.concat((nothing,) * self.rank + (rows,) + (nothing,) * (self.size - 1 - self.rank), 0)
        )
