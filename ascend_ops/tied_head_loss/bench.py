"""Shapes at which `python -m ascend_ops.bench` measures tied_head_loss."""

from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np

from ascend_ops.bench import runs
from ascend_ops.bench.case import BOTH, FORWARD, Case, Work
from ascend_ops.bench.gradient_case import Differentiable, gradient_case, products
from ascend_ops.tied_head_loss import reference

# tokens, hidden, vocabulary
SHAPES = ((1024, 256, 8000), (2048, 256, 8000), (2048, 512, 8000), (1024, 512, 40_000))
QUICK_SHAPES = ((256, 64, 2000),)


def cases(quick: bool) -> Iterator[Case]:
    """Yields the heads of small models, and one with PanGu-α's vocabulary, in training and in evaluation."""
    for shape in QUICK_SHAPES if quick else SHAPES:
        yield _case(*shape, trains=True)
        yield _case(*shape, trains=False)


def _case(tokens: int, hidden: int, vocabulary: int, trains: bool) -> Case:
    flops = 2 * tokens * hidden * vocabulary
    forward = [("N", "T", tokens, vocabulary, hidden)]
    backward = [("N", "N", tokens, hidden, vocabulary), ("T", "N", vocabulary, hidden, tokens)]
    return gradient_case(
        op="tied_head_loss",
        shape=f"T{tokens} H{hidden} V{vocabulary}",
        limit="the same matrix products by the same GEMM, all threads: three, and one without gradients",
        work={BOTH: Work(flops=3 * flops)} if trains else {FORWARD: Work(flops=flops)},
        make=lambda: _make(tokens, hidden, vocabulary, trains),
        make_limit=lambda: products(forward, backward),
    )


def _make(tokens: int, hidden: int, vocabulary: int, trains: bool) -> Differentiable:
    rng = np.random.default_rng(0)
    x_TH = rng.standard_normal((tokens, hidden), np.float32)
    table_VH = np.float32(0.1) * rng.standard_normal((vocabulary, hidden), np.float32)
    targets_BS = rng.integers(0, vocabulary, (1, tokens)).astype(np.int32)
    vocabulary_B = np.zeros(1, np.int32)
    weights_BS = np.full((1, tokens), 1 / tokens, np.float32)
    starts = (0, vocabulary)

    def torch_function(x_TH, table_VH, targets_BS, vocabulary_B, weights_BS):
        functional = runs.torch_or_none().nn.functional
        loss = functional.cross_entropy(functional.linear(x_TH, table_VH), targets_BS.reshape(-1).long())
        return (loss.reshape(1, 1),)

    def losses(*inputs):
        *others, weights_BS = inputs
        return [(reference.token_losses(*others, starts) * weights_BS).sum().reshape(1, 1)]

    return Differentiable(
        inputs=(x_TH, table_VH, targets_BS, vocabulary_B, weights_BS),
        differentiate=(0, 1),
        dout=np.ones((1, 1), np.float32),
        bind=lambda module: _bound(module, starts, trains),
        torch_function=torch_function,
        reference=losses,
        reference_backward=lambda dout, x, table, targets, vocabularies, weights: reference.weighted_losses_backward(
            x, table, targets, vocabularies, weights, starts
        ),
    )


def _bound(module: ModuleType, starts: tuple[int, int], trains: bool) -> Callable:
    def training(x_TH, table_VH, targets_BS, vocabulary_B, weights_BS):
        total, _ = module.weighted_losses(x_TH, table_VH, targets_BS, vocabulary_B, weights_BS, starts, 0)
        return (total.reshape((1, 1)),)

    def evaluation(x_TH, table_VH, targets_BS, vocabulary_B, weights_BS):
        losses_BS = module.token_losses(x_TH, table_VH, targets_BS, vocabulary_B, starts, 0)
        return ((losses_BS * weights_BS).sum().reshape((1, 1)),)

    return training if trains else evaluation
