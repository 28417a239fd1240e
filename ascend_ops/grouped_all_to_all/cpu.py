"""grouped_all_to_all by the kernels in cpu.cc."""

import functools
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from ascend_ops.backends import custom_op

# In a bprop, dout[1] orders the backward exchange after that of the next forward exchange, and out[1] orders it after
# its own forward exchange: the gradient of a linear function alone would depend on no forward exchange.


def _exchange_bprop(rows_QH, send_counts_R, receive_counts_R, shape_C, handle, order, out, dout):
    zeros = ops.ZerosLike()
    drows_QH, order = _exchange(
        dout[0], receive_counts_R, send_counts_R, _shape((rows_QH.shape[0],)), handle, dout[1] + out[1]
    )
    return drows_QH, zeros(send_counts_R), zeros(receive_counts_R), zeros(shape_C), zeros(handle), order


_exchange = custom_op(
    "grouped_all_to_all",
    "grouped_all_to_all",
    lambda rows, send, receive, capacity, handle, order: ((capacity[0], rows[1]), order),
    lambda rows, *_: (rows, ms.float32),
    _exchange_bprop,
)

_dispatch_backward = custom_op(
    "grouped_all_to_all",
    "dispatch_all_to_all_backward",
    lambda drows, send, receive, positions, handle, order: ((positions[0], drows[1]), order),
    lambda drows, *_: (drows, ms.float32),
)


def _dispatch_bprop(
    x_TH,
    token_ids_T,
    slot_ids_T,
    table_DV,
    shape_RG,
    send_counts_R,
    receive_counts_R,
    shape_C,
    handle,
    order,
    out,
    dout,
):
    zeros = ops.ZerosLike()
    dx_TH, order = _dispatch_backward(dout[0], send_counts_R, receive_counts_R, out[2], handle, dout[4] + out[4])
    ids = (zeros(token_ids_T), zeros(slot_ids_T), zeros(table_DV), zeros(shape_RG))
    return dx_TH, *ids, zeros(send_counts_R), zeros(receive_counts_R), zeros(shape_C), zeros(handle), order


_dispatch = custom_op(
    "grouped_all_to_all",
    "dispatch_all_to_all",
    lambda x, tokens, slots, table, groups, send, receive, capacity, handle, order: (
        (capacity[0], x[1]),
        groups,
        tokens,
        [1],
        order,
    ),
    lambda x, *_: (x, ms.int32, ms.int32, ms.int32, ms.float32),
    _dispatch_bprop,
)


@ops.constexpr
def _shape(shape):
    """Returns a tensor that only carries a shape, because a custom op infers shapes from shapes."""
    return _tensor_of_shape(shape)


@functools.cache
def _tensor_of_shape(shape):
    return Tensor(np.zeros(shape, np.int8))


def grouped_all_to_all(
    rows_QH: Tensor, send_counts_R: Tensor, receive_counts_R: Tensor, capacity: int, group: Any, order: Tensor
) -> tuple[Tensor, Tensor]:
    """See `ascend_ops.grouped_all_to_all`."""
    return _exchange(rows_QH, send_counts_R, receive_counts_R, _shape((capacity,)), group.handle, order)


def dispatch_all_to_all(
    x_TH: Tensor,
    token_ids_T: Tensor,
    slot_ids_T: Tensor,
    table_DV: Tensor,
    num_experts: int,
    send_counts_R: Tensor,
    receive_counts_R: Tensor,
    capacity: int,
    group: Any,
    order: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `ascend_ops.grouped_all_to_all`."""
    shape_RG = _shape((group.size, table_DV.shape[0] * num_experts // group.size))
    ids = (token_ids_T, slot_ids_T, table_DV)
    shape_C = _shape((capacity,))
    return _dispatch(x_TH, *ids, shape_RG, send_counts_R, receive_counts_R, shape_C, group.handle, order)
