"""causal_attention by the kernels in cpu.cc, in float32. Other dtypes use the composed form."""

import mindspore as ms
from mindspore import Tensor, nn, ops

from ascend_ops.backends import custom_op
from ascend_ops.causal_attention import composed

_backward = custom_op(
    "causal_attention",
    "causal_attention_backward",
    lambda dout, *_: (dout, dout, dout),
    lambda dout, *_: (dout, dout, dout),
)


class _CausalAttention(nn.Cell):
    """The operator as a Cell, because a custom op's bprop cannot take a variable number of inputs in graph mode.

    The kernel reads the number of heads from the shape of its second output.
    """

    def __init__(self, num_heads):
        super().__init__()
        self.forward_kernel = custom_op(
            "causal_attention",
            "causal_attention",
            lambda query, key, value, first_keys, *_: (query, (first_keys[0], num_heads, first_keys[1], 2)),
            lambda query, *_: (query, query),
            variant=f"{num_heads} heads",
        )

    def construct(self, query_TH, key_TH, value_TH, first_keys_BS, rotation):
        return self.forward_kernel(query_TH, key_TH, value_TH, first_keys_BS, *rotation)

    def bprop(self, query_TH, key_TH, value_TH, first_keys_BS, rotation, out, dout):
        gradients = _backward(dout[0], out[0], out[1], query_TH, key_TH, value_TH, first_keys_BS, *rotation)
        zeros = ()
        for each in rotation:
            zeros = (*zeros, ops.ZerosLike()(each))
        return gradients[0], gradients[1], gradients[2], ops.ZerosLike()(first_keys_BS), zeros


_cells: dict[int, nn.Cell] = {}


@ops.constexpr
def _cell(num_heads):
    if num_heads not in _cells:
        _cells[num_heads] = _CausalAttention(num_heads)
    return _cells[num_heads]


def causal_attention(
    query_TH: Tensor,
    key_TH: Tensor,
    value_TH: Tensor,
    first_keys_BS: Tensor,
    num_heads: int,
    rotation: tuple[Tensor, Tensor, Tensor] | tuple[()] = (),
) -> Tensor:
    """See `ascend_ops.causal_attention`."""
    if query_TH.dtype != ms.float32:
        return composed.causal_attention(query_TH, key_TH, value_TH, first_keys_BS, num_heads, rotation)
    return _cell(num_heads)(query_TH, key_TH, value_TH, first_keys_BS, rotation)[0]
