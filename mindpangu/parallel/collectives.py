"""What the ranks of a tensor group do together inside a compiled function, with the gradients that belong to it.

Activations outside of these are the same on all ranks of the group ("whole"), and so are their gradients. Between them
a rank works on its part. Names say what happens forward; the gradient is the reverse:

    used       whole → whole, each rank goes on with a part of the work     gradients are summed
    summed     partial results → their sum, whole                           gradients pass
    split      whole → this rank's columns                                  gradients are joined
    joined     columns of all ranks → whole                                 gradients are split
    gathered   columns of all ranks → whole, each rank goes on with a part  gradients are summed and split
    scattered  partial results → this rank's columns of the sum             gradients are gathered

On the CPU all of it is AllReduce, the one collective that MindSpore compiles for sub-groups there: a join is the sum of
columns that stand among zeros, which is exact. On Ascend HCCL's own collectives do it. Half precision is added in
float32 on the CPU.
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

    def sum(self, x):
        if self.on_cpu and x.dtype == ms.float16:
            return ops.Cast()(self.all_reduce(ops.Cast()(x, ms.float32)), x.dtype)
        return self.all_reduce(x)

    def cut(self, x_TH):
        width = x_TH.shape[1] // self.size
        return ops.Slice()(x_TH, (0, self.rank * width), (x_TH.shape[0], width))

    def join(self, x_Th):
        rows, width = x_Th.shape
        if self.on_cpu:
            nothing = ops.ZerosLike()(x_Th)
            return self.sum(ops.Concat(1)((nothing,) * self.rank + (x_Th,) + (nothing,) * (self.size - 1 - self.rank)))
        x_RTh = ops.Reshape()(self.all_gather(x_Th), (self.size, rows, width))
        return ops.Reshape()(ops.Transpose()(x_RTh, (1, 0, 2)), (rows, self.size * width))

    def sum_and_cut(self, x_TH):
        if self.on_cpu:
            return self.cut(self.sum(x_TH))
        rows, width = x_TH.shape[0], x_TH.shape[1] // self.size
        x_RTh = ops.Transpose()(ops.Reshape()(x_TH, (rows, self.size, width)), (1, 0, 2))
        return self.reduce_scatter(ops.Reshape()(x_RTh, (self.size * rows, width)))


class _Used(nn.Cell):
    def __init__(self, columns):
        super().__init__(auto_prefix=False)
        self.columns = columns

    def construct(self, x):
        return x

    def bprop(self, x, out, dout):
        return (self.columns.sum(dout),)


class _Summed(_Used):
    def construct(self, x):
        return self.columns.sum(x)

    def bprop(self, x, out, dout):
        return (dout,)


class _Split(_Used):
    def construct(self, x_TH):
        return self.columns.cut(x_TH)

    def bprop(self, x_TH, out, dout):
        return (self.columns.join(dout),)


class _Joined(_Used):
    def construct(self, x_Th):
        return self.columns.join(x_Th)

    def bprop(self, x_Th, out, dout):
        return (self.columns.cut(dout),)


class _Gathered(_Joined):
    def bprop(self, x_Th, out, dout):
        return (self.columns.sum_and_cut(dout),)


class _Scattered(_Used):
    def construct(self, x_TH):
        return self.columns.sum_and_cut(x_TH)

    def bprop(self, x_TH, out, dout):
        return (self.columns.join(dout),)


class _Maximum(_Used):
    """Of x_T1 over the ranks; without gradient."""

    def construct(self, x_T1):
        return self.columns.join(x_T1).max(axis=1, keepdims=True)

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
            self.used = self.summed = self.split = self.joined = self.gathered = self.scattered = _same
            self.maximum = _same
            return
        columns = _Columns(name, rank, size)
        self.used, self.summed = _Used(columns), _Summed(columns)
        self.split, self.joined = _Split(columns), _Joined(columns)
        self.gathered, self.scattered = _Gathered(columns), _Scattered(columns)
        self.maximum = _Maximum(columns)

    def apart(self) -> "TensorGroup":
        """The same group in Cells of its own: what `Cell.recompute` marks is marked wherever the Cell is used."""
        return TensorGroup(self.name, self.rank, self.size)


def _same(x):
    return x
