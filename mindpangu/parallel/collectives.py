"""The tensor group's collectives inside compiled functions, each with its gradient.

Outside these calls, activations and their gradients are whole: identical on all ranks of the group. Between them, each
rank works on its own columns or on a partial sum. The names follow Megatron-LM's mappings
(megatron/core/tensor_parallel/mappings.py); a name says what happens forward, and the gradient goes the other way:

    copy_to                   whole → whole, used by each rank for its own columns     gradient: all-reduce
    reduce_from               partial sums → all-reduce → whole                        gradient: identity
    scatter_to                whole → this rank's columns                              gradient: all-gather of columns
    gather_from               columns → all-gather → whole                             gradient: this rank's columns
    all_gather_last_dim       columns → all-gather → whole, used by each rank          gradient: reduce-scatter
    reduce_scatter_last_dim   partial sums → this rank's columns of their sum          gradient: all-gather of columns

The CPU backend compiles only AllReduce for sub-groups, so there everything is built from it: an all-gather is the sum
of columns padded with zeros, which is exact. Ascend uses HCCL's own collectives. On the CPU, half precision is summed
in float32.
"""

import mindspore as ms
from mindspore import nn, ops


class _Columns(nn.Cell):
    """The collectives of one group. Only primitives: functions of `ops` that branch cannot be compiled in a bprop."""

    def __init__(self, group, rank, size):
        super().__init__(auto_prefix=False)
        self.rank, self.size = rank, size
        self.on_cpu = ms.get_context("device_target") == "CPU"
        self.all_reduce = ops.AllReduce(group=group)
        self.all_gather = None if self.on_cpu else ops.AllGather(group=group)
        self.reduce_scatter = None if self.on_cpu else ops.ReduceScatter(group=group)

    def all_reduce_sum(self, x):
        if self.on_cpu and x.dtype == ms.float16:
            return ops.Cast()(self.all_reduce(ops.Cast()(x, ms.float32)), x.dtype)
        return self.all_reduce(x)

    def scatter(self, x_TH):
        width = x_TH.shape[1] // self.size
        return ops.Slice()(x_TH, (0, self.rank * width), (x_TH.shape[0], width))

    def gather(self, x_Th):
        rows, width = x_Th.shape
        if self.on_cpu:
            nothing = ops.ZerosLike()(x_Th)
            return self.all_reduce_sum(
                ops.Concat(1)((nothing,) * self.rank + (x_Th,) + (nothing,) * (self.size - 1 - self.rank))
            )
        x_RTh = ops.Reshape()(self.all_gather(x_Th), (self.size, rows, width))
        return ops.Reshape()(ops.Transpose()(x_RTh, (1, 0, 2)), (rows, self.size * width))

    def reduce_scatter_sum(self, x_TH):
        if self.on_cpu:
            return self.scatter(self.all_reduce_sum(x_TH))
        rows, width = x_TH.shape[0], x_TH.shape[1] // self.size
        x_RTh = ops.Transpose()(ops.Reshape()(x_TH, (rows, self.size, width)), (1, 0, 2))
        return self.reduce_scatter(ops.Reshape()(x_RTh, (self.size * rows, width)))


class _CopyTo(nn.Cell):
    """Forward: identity. Backward: all-reduces the gradient."""

    def __init__(self, columns):
        super().__init__(auto_prefix=False)
        self.columns = columns

    def construct(self, x):
        return x

    def bprop(self, x, out, dout):
        return (self.columns.all_reduce_sum(dout),)


class _ReduceFrom(_CopyTo):
    """Forward: all-reduces partial sums. Backward: identity."""

    def construct(self, x):
        return self.columns.all_reduce_sum(x)

    def bprop(self, x, out, dout):
        return (dout,)


class _ScatterTo(_CopyTo):
    """Forward: keeps this rank's columns. Backward: all-gathers the columns."""

    def construct(self, x_TH):
        return self.columns.scatter(x_TH)

    def bprop(self, x_TH, out, dout):
        return (self.columns.gather(dout),)


class _GatherFrom(_CopyTo):
    """Forward: all-gathers the columns. Backward: keeps this rank's columns."""

    def construct(self, x_Th):
        return self.columns.gather(x_Th)

    def bprop(self, x_Th, out, dout):
        return (self.columns.scatter(dout),)


class _AllGatherLastDim(_GatherFrom):
    """Forward: all-gathers the columns. Backward: reduce-scatters the gradient."""

    def bprop(self, x_Th, out, dout):
        return (self.columns.reduce_scatter_sum(dout),)


class _ReduceScatterLastDim(_CopyTo):
    """Forward: reduce-scatters partial sums. Backward: all-gathers the columns."""

    def construct(self, x_TH):
        return self.columns.reduce_scatter_sum(x_TH)

    def bprop(self, x_TH, out, dout):
        return (self.columns.gather(dout),)


class _Maximum(_CopyTo):
    """The maximum of x_T1 over the ranks. Has no gradient."""

    def construct(self, x_T1):
        return self.columns.gather(x_T1).max(axis=1, keepdims=True)

    def bprop(self, x_T1, out, dout):
        return (ops.ZerosLike()(x_T1),)


@ms.jit_class
class TensorGroup:
    """The ranks that share a layer's matrices. Alone, every function returns what it is given.

    Attributes:
        rank, size: of this process in the group.

    Args:
        name: of a group that was created; not needed where size is 1.
    """

    def __init__(self, name: str = "", rank: int = 0, size: int = 1):
        self.name, self.rank, self.size = name, rank, size
        if size == 1:
            self.copy_to = self.reduce_from = _same
            self.scatter_to = self.gather_from = _same
            self.all_gather_last_dim = self.reduce_scatter_last_dim = _same
            self.maximum = _same
            return
        columns = _Columns(name, rank, size)
        self.copy_to = _CopyTo(columns)
        self.reduce_from = _ReduceFrom(columns)
        self.scatter_to = _ScatterTo(columns)
        self.gather_from = _GatherFrom(columns)
        self.all_gather_last_dim = _AllGatherLastDim(columns)
        self.reduce_scatter_last_dim = _ReduceScatterLastDim(columns)
        self.maximum = _Maximum(columns)

    def apart(self) -> "TensorGroup":
        """The same group in Cells of its own: what `Cell.recompute` marks is marked wherever the Cell is used."""
        return TensorGroup(self.name, self.rank, self.size)


def _same(x):
    return x
