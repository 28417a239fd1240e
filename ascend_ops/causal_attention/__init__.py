"""causal_attention: multi-head attention on rows [T, H], without transposed copies or an S × S matrix in memory."""

import mindspore as ms
from mindspore import Tensor, ops

from ascend_ops import backends

implementation = backends.choose("causal_attention")


def causal_attention(
    query_TH: Tensor,
    key_TH: Tensor,
    value_TH: Tensor,
    first_keys_BS: Tensor,
    num_heads: int,
    rotation: tuple[Tensor, Tensor, Tensor] | tuple[()] = (),
) -> Tensor:
    """Computes softmax(query · keyᵀ / √K) · value for every head; a token attends to itself and to earlier tokens.

    Args:
        query_TH, key_TH, value_TH: float [T, N·K], the heads side by side, T = B·S.
        first_keys_BS: int32 [B, S], index of the first key that each token of a sequence may look at, from 0 to the
            token's own index: 0 for all that came before, or the first token of the document.
        num_heads: N.
        rotation: () for none, or (positions_BS, cosine_CK, sine_CK): int32 positions below C, and the cosines and sines
            of each position's angles, float32 (float64 for float64 rows) [C, K/2], by which queries and keys are
            turned first (RoFormer, arXiv 2104.09864): element i of the first half of a head and element i of its second
            half are a pair.

    Returns:
        float [T, N·K] of query_TH's dtype. The softmax is computed in at least fp32.

    Raises:
        TypeError, ValueError: wrong dtypes or shapes, when the operator is built.
        RuntimeError: the CPU kernel was given a first key after its token, or a position outside the angles.

    Supported modes: graph (@ms.jit) and PyNative; differentiable with respect to queries, keys and values.
    """
    dtypes: tuple = (query_TH.dtype, key_TH.dtype, value_TH.dtype, first_keys_BS.dtype)
    shapes: tuple = (query_TH.shape, key_TH.shape, value_TH.shape, first_keys_BS.shape)
    for each in rotation:
        dtypes = (*dtypes, each.dtype)
        shapes = (*shapes, each.shape)
    _check(dtypes, shapes, num_heads)
    return implementation.causal_attention(query_TH, key_TH, value_TH, first_keys_BS, num_heads, rotation)


@ops.constexpr
def _check(dtypes, shapes, num_heads):
    query, *others, first_keys = dtypes[:4]
    wide = ms.float64 if query == ms.float64 else ms.float32
    right = query in (ms.float16, ms.float32, ms.float64) and {*others} == {query} and first_keys == ms.int32
    if not right or dtypes[4:] not in ((), (ms.int32, wide, wide)):
        raise TypeError(
            "causal_attention: expected query_TH, key_TH and value_TH of one dtype, float16, 32 or 64, int32 "
            "first_keys_BS and positions_BS, and float32 angles (float64 for float64 rows), "
            f"got {', '.join(map(str, dtypes))}"
        )
    query, *others, first_keys = shapes[:4]
    right = len(query) == 2 and others == [query, query] and len(first_keys) == 2
    if not right or query[0] != first_keys[0] * first_keys[1] or query[1] % num_heads:
        raise ValueError(
            "causal_attention: expected query_TH, key_TH and value_TH [B·S, N·K] and first_keys_BS [B, S], "
            f"got {', '.join(map(str, shapes))} and {num_heads} heads"
        )
    if len(shapes) == 4:
        return
    positions, cosine, sine = shapes[4:]
    size = query[1] // num_heads
    if positions != first_keys or len(cosine) != 2 or sine != cosine or 2 * cosine[1] != size:
        raise ValueError(
            f"causal_attention: expected positions_BS {list(first_keys)} and angles [C, K/2] for heads of size {size}, "
            f"got {', '.join(map(str, shapes[4:]))}"
        )
