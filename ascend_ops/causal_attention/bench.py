"""Shapes at which `python -m ascend_ops.bench` measures causal_attention."""

from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np

from ascend_ops.bench import runs
from ascend_ops.bench.case import BOTH, FORWARD, Case, Work
from ascend_ops.bench.gradient_case import Differentiable, gradient_case, products
from ascend_ops.causal_attention import reference

# batch, length, heads, size of a head
SHAPES = ((8, 128, 4, 64), (8, 256, 4, 64), (2, 1024, 4, 128), (1, 2048, 16, 128))
QUICK_SHAPES = SHAPES[:1]


def cases(quick: bool) -> Iterator[Case]:
    """Yields short and long sequences."""
    for shape in QUICK_SHAPES if quick else SHAPES:
        yield _case(*shape)


def _case(batch: int, length: int, heads: int, size: int) -> Case:
    # half of the scores are needed: two products of [B·N·S, S/2], and five backward, because the scores are not kept
    rows = batch * heads * length
    scores = ("N", "T", rows, length // 2, size)
    mixed = ("N", "N", rows, size, length // 2)
    flops = 4 * rows * size * length // 2
    return gradient_case(
        op="causal_attention",
        shape=f"B{batch} S{length} N{heads} K{size}",
        limit="matrix products of as many multiplications by the same GEMM, all threads",
        work={FORWARD: Work(flops=flops), BOTH: Work(flops=flops * 7 // 2)},
        make=lambda: _make(batch, length, heads, size),
        make_limit=lambda: products([scores, mixed], [scores, scores, mixed, mixed, mixed]),
    )


def _make(batch: int, length: int, heads: int, size: int) -> Differentiable:
    rng = np.random.default_rng(0)
    query, key, value, dout = (rng.standard_normal((batch * length, heads * size), np.float32) for _ in range(4))
    first_keys_BS = np.zeros((batch, length), np.int32)

    def torch_function(query, key, value, first_keys_BS):
        functional = runs.torch_or_none().nn.functional
        split = (x.view(batch, length, heads, size).transpose(1, 2) for x in (query, key, value))
        mixed = functional.scaled_dot_product_attention(*split, is_causal=True)
        return (mixed.transpose(1, 2).reshape(batch * length, heads * size),)

    return Differentiable(
        inputs=(query, key, value, first_keys_BS),
        differentiate=(0, 1, 2),
        dout=dout,
        bind=lambda module: _bound(module, heads),
        torch_function=torch_function,
        reference=lambda q, k, v, first: [reference.causal_attention(q, k, v, first, heads)],
        reference_backward=lambda dout, q, k, v, first: reference.causal_attention_backward(
            dout, q, k, v, first, heads
        ),
    )


def _bound(module: ModuleType, heads: int) -> Callable:
    def function(query, key, value, first_keys_BS):
        return (module.causal_attention(query, key, value, first_keys_BS, heads),)

    return function
