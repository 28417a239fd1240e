"""rre_dispatch by the kernels in cpu.cc."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from ascend_ops.backends import custom_op

_backward = custom_op("rre_dispatch", "rre_dispatch_backward", lambda drows, positions: drows, lambda x, _: x)


def _bprop(x_TH, token_ids_T, slot_ids_T, table_DV, groups_G, out, dout):
    zeros = ops.ZerosLike()
    dx_TH = _backward(dout[0], out[2])
    return dx_TH, zeros(token_ids_T), zeros(slot_ids_T), zeros(table_DV), zeros(groups_G)


_forward = custom_op(
    "rre_dispatch",
    "rre_dispatch",
    lambda x, tokens, slots, table, groups: (x, groups, tokens, [1]),
    lambda x, *_: (x, ms.int32, ms.int32, ms.int32),
    _bprop,
)


@ops.constexpr
def _groups(size):
    """Returns a tensor whose shape is the number of groups, because a custom op infers shapes only from shapes."""
    return Tensor(np.zeros(size, np.int32))


def rre_dispatch(
    x_TH: Tensor, token_ids_T: Tensor, slot_ids_T: Tensor, table_DV: Tensor, num_experts: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `ascend_ops.rre_dispatch`."""
    return _forward(x_TH, token_ids_T, slot_ids_T, table_DV, _groups(table_DV.shape[0] * num_experts))
