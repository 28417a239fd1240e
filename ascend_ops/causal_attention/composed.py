"""causal_attention by built-in MindSpore ops: the whole matrix of scores, with its softmax in at least fp32."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

# made once, not in every call
_score = ops.BatchMatMul(transpose_b=True)
_mix = ops.BatchMatMul()
_softmax = ops.Softmax(-1)
_halves = ops.Split(3, 2)

NEVER = -1e9  # is added to the scores of keys that a token may not look at


def causal_attention(
    query_TH: Tensor,
    key_TH: Tensor,
    value_TH: Tensor,
    first_keys_BS: Tensor,
    num_heads: int,
    rotation: tuple[Tensor, Tensor, Tensor] | tuple[()] = (),
) -> Tensor:
    """See `ascend_ops.causal_attention`."""
    query = split_heads(query_TH, first_keys_BS, num_heads)
    key = split_heads(key_TH, first_keys_BS, num_heads)
    if len(rotation) > 0:
        query = rotate(query, *rotation)
        key = rotate(key, *rotation)
    return attend(query, key, split_heads(value_TH, first_keys_BS, num_heads), mask(first_keys_BS))


def attend(query, key, value, mask):
    """Computes softmax(query · keyᵀ / √K + mask) · value for heads [B, N, S, K]. Returns rows [B·S, N·K].

    Keys and values may have another length C; the mask broadcasts to [B, N, S, C].
    """
    batch, num_heads, length, size = query.shape
    scale = size**-0.5
    if query.dtype == ms.float16:
        # the largest fp16 number is 65504: scale the queries before the product instead of the scores after it
        scores_BNSC = ops.cast(_score(query * scale, key), ms.float32)
    else:
        scores_BNSC = _score(query, key) * scale
    # A single key has the weight 1. Do not ask MindSpore's softmax: once PyNative mode has differentiated one over a
    # single element, its gradients of all later ones in the process are wrong.
    weights_BNSC = _softmax(scores_BNSC + mask) if key.shape[2] > 1 else ops.ones_like(scores_BNSC)
    if query.dtype == ms.float16:
        weights_BNSC = ops.cast(weights_BNSC, ms.float16)
    mixed = _mix(weights_BNSC, value)
    return mixed.transpose((0, 2, 1, 3)).reshape((batch * length, num_heads * size))


def mask(first_keys_BS):
    """Returns float32 [B, 1, S, S]: NEVER where a key comes after its query or before the first key, else 0."""
    index_S = _range(first_keys_BS.shape[1])
    later_SS = index_S > ops.expand_dims(index_S, 1)
    earlier_BSS = index_S < ops.expand_dims(first_keys_BS, 2)
    hidden_BSS = ops.cast(ops.logical_or(later_SS, earlier_BSS), ms.float32)
    return ops.expand_dims(hidden_BSS * NEVER, 1)


def rotate(x_BNSK, positions_BS, cosine_CK, sine_CK):
    """Turns heads by the angles of their positions, in the dtype of the angles."""
    cosine = ops.expand_dims(ops.gather(cosine_CK, positions_BS, 0), 1)
    sine = ops.expand_dims(ops.gather(sine_CK, positions_BS, 0), 1)
    wide = x_BNSK if x_BNSK.dtype == cosine.dtype else ops.cast(x_BNSK, cosine.dtype)
    first, second = _halves(wide)
    turned = ops.concat((first * cosine - second * sine, second * cosine + first * sine), 3)
    return turned if turned.dtype == x_BNSK.dtype else ops.cast(turned, x_BNSK.dtype)


def split_heads(x_TH, first_keys_BS, num_heads):
    """Returns the heads of rows [B·S, N·K] as [B, N, S, K]."""
    batch, length = first_keys_BS.shape
    return x_TH.reshape((batch, length, num_heads, x_TH.shape[1] // num_heads)).transpose((0, 2, 1, 3))


@ops.constexpr
def _range(size):
    return Tensor(np.arange(size, dtype=np.int32))
