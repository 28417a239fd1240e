"""The compiled functions of a training step: forward and gradients of the two halves of the decoder.

    lower_forward(rows, positions) → h
    upper_step(vocabulary, capacity, h, tokens, …, slabs)
        → loss, per-sample losses, number of invalid ids; gradients of h, the slabs, and the upper half
    lower_backward(rows, positions, dh) → gradients of the lower half         (recomputes the lower half)

If only experts are trained, upper_step returns only the gradients of the slabs, and lower_backward is not called.

A graph takes all its inputs at launch, but experts must be able to move while the lower half runs. So PanGu-Σ's step is
split between the halves. Where no experts move, no rows are exchanged, and all parameters are trained, `whole_step`
computes all of it, and the lower half only once. Both give the same bits (tests/train/test_step.py).
"""

import mindspore as ms
from mindspore import ParameterTuple, nn

from mindpangu.model.decoder import Decoder

# Inputs of UpperLoss before the slabs: vocabulary, capacity, h, tokens, positions, targets, loss weights, vocabulary of
# each sample, domain slot of each sample, tables. The first two are Python ints: the graph is compiled once per value.
_FIRST_SLAB = 10


class UpperLoss(nn.Cell):
    """Weighted loss of the upper half; differentiable in h_TH and the slabs.

    Takes flat arguments and packs them into tuples here: MindSpore treats a tuple of tensors that is passed to a
    compiled function as a constant and would recompile for every new one.

    Args:
        num_slabs: number of slabs at the start of `rest`. The token dispatcher's counts, if it takes any, follow them.
    """

    def __init__(self, decoder: Decoder, num_slabs: int):
        super().__init__(auto_prefix=False)
        self.upper = decoder.upper
        self.num_slabs = num_slabs

    def construct(
        self,
        vocabulary,
        capacity,
        h_TH,
        tokens_BS,
        positions_BS,
        targets_BS,
        weights_BS,
        vocabulary_of_sample_B,
        domain_slots_B,
        tables_LDV,
        *rest,
    ):
        routing = (tokens_BS, domain_slots_B, tables_LDV, capacity, rest[self.num_slabs :])
        x_TH, invalid = self.upper(h_TH, positions_BS, routing, rest[: self.num_slabs])
        loss, losses_BS = self.upper.weighted_losses(x_TH, targets_BS, weights_BS, vocabulary, vocabulary_of_sample_B)
        return loss, losses_BS.sum(1), invalid


class LowerProduct(nn.Cell):
    """⟨lower(rows), dh⟩: its gradient is the loss gradient with respect to the lower half."""

    def __init__(self, decoder: Decoder):
        super().__init__(auto_prefix=False)
        self.lower = decoder.lower

    def construct(self, rows_BS, positions_BS, dh_TH):
        return (self.lower(rows_BS, positions_BS) * dh_TH).sum()


class WholeLoss(nn.Cell):
    """Both halves as one function."""

    def __init__(self, decoder: Decoder, num_slabs: int):
        super().__init__(auto_prefix=False)
        self.lower = decoder.lower
        self.loss = UpperLoss(decoder, num_slabs)

    def construct(self, vocabulary, capacity, rows_BS, tokens_BS, positions_BS, *rest):
        h_TH = self.lower(rows_BS, positions_BS)
        return self.loss(vocabulary, capacity, h_TH, tokens_BS, positions_BS, *rest)


class CompiledFunctions:
    """The compiled functions of one decoder. Each is compiled when it is first called, and again for new shapes.

    Args:
        decoder: the model.
        num_slabs: number of slabs that a micro-batch takes; 0 for a dense model.
        trains_dense: False to compute only the gradients of the slabs.
    """

    def __init__(self, decoder: Decoder, num_slabs: int, trains_dense: bool = True):
        slabs = tuple(range(_FIRST_SLAB, _FIRST_SLAB + num_slabs))
        lower = ParameterTuple(decoder.lower_parameters)
        upper = ParameterTuple(decoder.upper_parameters)
        all_parameters = ParameterTuple(list(decoder.parameters.values()))
        inputs, weights = ((2, *slabs), upper) if trains_dense else (slabs, None)
        upper_gradient = ms.value_and_grad(UpperLoss(decoder, num_slabs), inputs, weights, has_aux=True)
        lower_gradient = ms.grad(LowerProduct(decoder), None, lower)
        whole_gradient = ms.value_and_grad(WholeLoss(decoder, num_slabs), slabs or None, all_parameters, has_aux=True)
        lower_cell = decoder.lower

        @ms.jit
        def lower_forward(rows_BS, positions_BS):
            return lower_cell(rows_BS, positions_BS)

        @ms.jit
        def upper_step(vocabulary, capacity, h_TH, *rest):
            return upper_gradient(vocabulary, capacity, h_TH, *rest)

        @ms.jit
        def lower_backward(rows_BS, positions_BS, dh_TH):
            return lower_gradient(rows_BS, positions_BS, dh_TH)

        @ms.jit
        def whole_step(vocabulary, capacity, rows_BS, *rest):
            return whole_gradient(vocabulary, capacity, rows_BS, *rest)

        self.lower_forward = lower_forward
        self.upper_step = upper_step
        self.lower_backward = lower_backward
        self.whole_step = whole_step
