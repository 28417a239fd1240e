"""The tensor group's collectives inside compiled functions, each with its gradient.

Outside these calls, activations and their gradients are whole: identical on all ranks of the group. Between them, each
rank works on its own columns or on a partial sum. The names follow Megatron-LM's mappings
(megatron/core/tensor_parallel/mappings.py). They describe the forward pass; the gradient takes the opposite way:

    copy_to                   whole → whole, used by each rank for its own columns     gradient: all-reduce
    reduce_from               partial sums → all-reduce → whole                        gradient: identity
    scatter_to                whole → this rank's columns                              gradient: all-gather of columns
    gather_from               columns → all-gather → whole                             gradient: this rank's columns
    all_gather_last_dim       columns → all-gather → whole, used by each rank          gradient: reduce-scatter
    reduce_scatter_last_dim   partial sums → this rank's columns of their sum          gradient: all-gather of columns

The CPU backend compiles only AllReduce for groups of some of the ranks, so on the CPU everything is built from it: an
all-gather is the sum of columns padded with zeros, which is exact. Ascend uses HCCL's own collectives. On the CPU, half
precision is summed in float32.
"""

import mindspore as ms
from mindspore import nn, ops


class _Collectives(nn.Cell):
    """The collectives of one group. Primitives only: functions of `ops` that branch do not compile in a bprop."""

    def __init__(self, group, rank, size):
        super().__init__(auto_prefix=False)
        self.rank = rank
        self.size = size
        self.on_cpu = ms.get_context("device_target") == "CPU"
        self.all_reduce = ops.AllReduce(group=group)
        self.all_gather = None if self.on_cpu else ops.AllGather(group=group)
        self.reduce_scatter = None if self.on_cpu else ops.ReduceScatter(group=group)

    def all_reduce_sum(self, x):
        if self.on_cpu and x.dtype == ms.float16:
            return ops.Cast()(self.all_reduce(ops.Cast()(x, ms.float32)), x.dtype)
        return self.all_reduce(x)

    def local_columns(self, x_TH):
        width = x_TH.shape[1] // self.size
        return ops.Slice()(x_TH, (0, self.rank * width), (x_TH.shape[0], width))

    def gather_columns(self, local):
        rows, width = local.shape
        if self.on_cpu:
            nothing = ops.ZerosLike()(local)
            return self.all_reduce_sum(
                ops.Concat(1)((nothing,) * self.rank + (local,) + (nothing,) * (self.size - 1 - self.rank))
            )
        by_rank = ops.Reshape()(self.all_gather(local), (self.size, rows, width))
        return ops.Reshape()(ops.Transpose()(by_rank, (1, 0, 2)), (rows, self.size * width))

    def reduce_scatter_sum(self, x_TH):
        if self.on_cpu:
            return self.local_columns(self.all_reduce_sum(x_TH))
        rows = x_TH.shape[0]
        width = x_TH.shape[1] // self.size
        by_rank = ops.Transpose()(ops.Reshape()(x_TH, (rows, self.size, width)), (1, 0, 2))
        return self.reduce_scatter(ops.Reshape()(by_rank, (self.size * rows, width)))


class _CopyTo(nn.Cell):
    """Forward: identity. Backward: all-reduces the gradient."""

    def __init__(self, collectives):
        super().__init__(auto_prefix=False)
        self.collectives = collectives

    def construct(self, x):
        return x

    def bprop(self, x, out, dout):
        return (self.collectives.all_reduce_sum(dout),)


class _ReduceFrom(_CopyTo):
    """Forward: all-reduces partial sums. Backward: identity."""

    def construct(self, x):
        return self.collectives.all_reduce_sum(x)

    def bprop(self, x, out, dout):
        return (dout,)


class _ScatterTo(_CopyTo):
    """Forward: keeps this rank's columns. Backward: all-gathers the columns."""

    def construct(self, x_TH):
        return self.collectives.local_columns(x_TH)

    def bprop(self, x_TH, out, dout):
        return (self.collectives.gather_columns(dout),)


class _GatherFrom(_CopyTo):
    """Forward: all-gathers the columns. Backward: keeps this rank's columns."""

    def construct(self, local):
        return self.collectives.gather_columns(local)

    def bprop(self, local, out, dout):
        return (self.collectives.local_columns(dout),)


class _AllGatherLastDim(_GatherFrom):
    """Forward: all-gathers the columns. Backward: reduce-scatters the gradient."""

    def bprop(self, local, out, dout):
        return (self.collectives.reduce_scatter_sum(dout),)


class _ReduceScatterLastDim(_CopyTo):
    """Forward: reduce-scatters partial sums. Backward: all-gathers the columns."""

    def construct(self, x_TH):
        return self.collectives.reduce_scatter_sum(x_TH)

    def bprop(self, x_TH, out, dout):
        return (self.collectives.gather_columns(dout),)


class _Maximum(_CopyTo):
    """The maximum of x_T1 over the ranks. Has no gradient."""

    def construct(self, x_T1):
        return self.collectives.gather_columns(x_T1).max(axis=1, keepdims=True)

    def bprop(self, x_T1, out, dout):
        return (ops.ZerosLike()(x_T1),)


@ms.jit_class
class TensorGroup:
    """The ranks that share a layer's matrices. In a group of one, every function returns its argument.

    Attributes:
        rank, size: rank of this process in the group, and size of the group.

    Args:
        name: name of the group, which must have been created; not needed if `size` is 1.
    """

    def __init__(self, name: str = "", rank: int = 0, size: int = 1):
        self.name = name
        self.rank = rank
        self.size = size
        if size == 1:
            self.copy_to = _identity
            self.reduce_from = _identity
            self.scatter_to = _identity
            self.gather_from = _identity
            self.all_gather_last_dim = _identity
            self.reduce_scatter_last_dim = _identity
            self.maximum = _identity
            return
        collectives = _Collectives(name, rank, size)
        self.copy_to = _CopyTo(collectives)
        self.reduce_from = _ReduceFrom(collectives)
        self.scatter_to = _ScatterTo(collectives)
        self.gather_from = _GatherFrom(collectives)
        self.all_gather_last_dim = _AllGatherLastDim(collectives)
        self.reduce_scatter_last_dim = _ReduceScatterLastDim(collectives)
        self.maximum = _Maximum(collectives)

    def with_own_cells(self) -> "TensorGroup":
        """Returns the same group with new Cells: `Cell.recompute` marks a Cell in every layer that uses it."""
        return TensorGroup(self.name, self.rank, self.size)


def _identity(x):
    return x
