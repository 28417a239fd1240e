"""Token dispatchers: gradients through both equal a NumPy reference, and none of a model's gradients is lost.

A NamedTuple or a dataclass built inside `@ms.jit` loses all gradients without an error. The tests here fail then.
"""

from typing import NamedTuple

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from ascend_ops.grouped_all_to_all import first_order, join
from ascend_ops.grouped_ffn import reference as ffn_reference
from ascend_ops.rre_combine import reference as combine_reference
from ascend_ops.rre_dispatch import reference as dispatch_reference
from mindpangu.config import load_config
from mindpangu.domains import build_domains
from mindpangu.model.decoder import Decoder
from mindpangu.model.initialization import initial_expert, network_tensors
from mindpangu.model.layers import Init
from mindpangu.model.routed_experts import RoutedExperts
from mindpangu.model.token_dispatcher import AllToAllTokenDispatcher, LocalTokenDispatcher
from mindpangu.model.vocabularies import Vocabularies
from mindpangu.train.compiled import CompiledFunctions

EXPERTS = 3
SLOTS = 2
BATCH = 4
SETTINGS = {
    "model.num_layers": "3",
    "model.rre_layers": "2",
    "model.hidden_size": "16",
    "model.num_heads": "2",
    "model.seq_length": "16",
    "model.vocab_size": "40",
    "domains.experts_per_domain": str(EXPERTS),
}


@pytest.fixture(scope="module")
def alone():
    """An exchange group whose only rank is this one."""
    group = join("alone", 0, 1)
    yield group
    group.close()


@pytest.fixture
def exchange(request, alone):
    return {"local": None, "all_to_all": alone}[request.param]


both_dispatchers = pytest.mark.parametrize("exchange", ["local", "all_to_all"], indirect=True)


def random_batch(config, layers):
    """(token ids [B, S], domain slot of each sample, tables [L, D, V], the experts' tensors layer by layer)."""
    rng = np.random.default_rng(0)
    tokens_BS = rng.integers(0, config.model.vocab_size, (BATCH, config.model.seq_length)).astype(np.int32)
    domain_slots_B = np.repeat(np.arange(SLOTS, dtype=np.int32), BATCH // SLOTS)
    tables_LDV = rng.integers(0, EXPERTS, (layers, SLOTS, config.model.vocab_size)).astype(np.int32)
    slabs = []
    for layer in range(layers):
        for domain in range(SLOTS):
            experts = [initial_expert(config, layer, f"domain {domain}", index) for index in range(EXPERTS)]
            for name in network_tensors(config.model):
                tensor = np.stack([expert[name] for expert in experts])
                slabs.append(tensor + 0.1 * rng.standard_normal(tensor.shape).astype(np.float32))
    return tokens_BS, domain_slots_B, tables_LDV, slabs


def planned_counts(tokens_BS, domain_slots_B, tables_LDV):
    """send_LR, receive_LR, and arriving_LRG of an exchange with oneself."""
    tokens_T = tokens_BS.reshape(-1)
    slot_ids_T = np.repeat(domain_slots_B, tokens_BS.shape[1])
    rows_LR = np.full((len(tables_LDV), 1), len(tokens_T), np.int32)
    arriving_LRG = np.zeros((len(tables_LDV), 1, SLOTS * EXPERTS), np.int32)
    for layer, table_DV in enumerate(tables_LDV):
        groups_T = slot_ids_T * EXPERTS + table_DV[slot_ids_T, tokens_T]
        arriving_LRG[layer, 0] = np.bincount(groups_T, minlength=SLOTS * EXPERTS)
    return rows_LR, rows_LR.copy(), arriving_LRG


class RoutedLoss(nn.Cell):
    """Σ (x + expert(x · weight)) ⊙ direction: a routed layer behind a dense parameter."""

    def __init__(self, config, exchange, weight_HH):
        super().__init__(auto_prefix=False)
        self.experts = RoutedExperts(Init(config), exchange)
        self.weight = Parameter(Tensor(weight_HH), name="weight")
        self.num_counts = 0 if exchange is None else 3

    def construct(self, capacity, x_TH, direction_TH, tokens_T, slot_ids_T, table_DV, *rest):
        counts = rest[: self.num_counts]
        slabs = rest[self.num_counts :]
        routing = (tokens_T, slot_ids_T, table_DV, slabs[0].shape[0], capacity, counts)
        out_TH, invalid, _ = self.experts(x_TH, ops.matmul(x_TH, self.weight), routing, slabs, first_order())
        return (out_TH * direction_TH).sum(), invalid


def reference_gradients(x_TH, direction_TH, weight_HH, ids, slabs):
    """(value, gradient of x, of the weight, of each slab) of `RoutedLoss` in NumPy, float64."""
    x_TH, direction_TH, weight_HH = (array.astype(np.float64) for array in (x_TH, direction_TH, weight_HH))
    slabs = [slab.astype(np.float64) for slab in slabs]
    rows_TH, counts_G, positions_T = dispatch_reference.rre_dispatch(x_TH @ weight_HH, *ids, EXPERTS)
    out_TH = combine_reference.rre_combine(ffn_reference.grouped_ffn(rows_TH, counts_G, slabs), positions_T, x_TH)
    dsorted_TH, dresidual_TH = combine_reference.rre_combine_backward(direction_TH, positions_T)
    drows_TH, dslabs = ffn_reference.grouped_ffn_backward(dsorted_TH, rows_TH, counts_G, slabs)
    dh_TH = dispatch_reference.rre_dispatch_backward(drows_TH, positions_T)
    return (out_TH * direction_TH).sum(), dresidual_TH + dh_TH @ weight_HH.T, x_TH.T @ dh_TH, dslabs


@both_dispatchers
def test_gradients_of_a_routed_layer_equal_the_reference(exchange):
    config = load_config(None, SETTINGS)
    tokens_BS, domain_slots_B, tables_LDV, slabs = random_batch(config, layers=1)
    ids = (tokens_BS.reshape(-1), np.repeat(domain_slots_B, tokens_BS.shape[1]), tables_LDV[0])
    rng = np.random.default_rng(1)
    x_TH, direction_TH = rng.standard_normal((2, tokens_BS.size, 16)).astype(np.float32)
    weight_HH = rng.standard_normal((16, 16)).astype(np.float32)
    counts = [each[0] for each in planned_counts(tokens_BS, domain_slots_B, tables_LDV)] if exchange else []

    loss = RoutedLoss(config, exchange, weight_HH)
    first_slab = 6 + len(counts)
    wanted = (1, *range(first_slab, first_slab + len(slabs)))
    gradient = ms.value_and_grad(loss, wanted, ParameterTuple([loss.weight]), has_aux=True)

    @ms.jit
    def step(capacity, *inputs):
        return gradient(capacity, *inputs)

    inputs = [Tensor(array) for array in (x_TH, direction_TH, *ids, *counts, *slabs)]
    (value, invalid), ((dx_TH, *dslabs), (dweight_HH,)) = step(tokens_BS.size, *inputs)

    expected_value, expected_dx_TH, expected_dweight_HH, expected_dslabs = reference_gradients(
        x_TH, direction_TH, weight_HH, ids, slabs
    )
    assert invalid.asnumpy().tolist() == [0]
    assert float(value.asnumpy()) == pytest.approx(expected_value, rel=1e-5)
    found = [dx_TH, dweight_HH, *dslabs]
    for each, expected in zip(found, [expected_dx_TH, expected_dweight_HH, *expected_dslabs], strict=True):
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(each.asnumpy(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def upper_step(exchange):
    """(loss, gradients of h and the slabs, gradients of the upper half by name) of a training step of a small model."""
    config = load_config(None, SETTINGS)
    decoder = Decoder(config, Vocabularies.build(config, build_domains(config)), exchange=exchange)
    tokens_BS, domain_slots_B, tables_LDV, slabs = random_batch(config, layers=2)
    batch, length = tokens_BS.shape
    rng = np.random.default_rng(2)
    arrays = [
        rng.standard_normal((batch * length, 16)).astype(np.float32),
        tokens_BS,
        np.tile(np.arange(length, dtype=np.int32), (batch, 1)),
        np.roll(tokens_BS, -1, 1),
        np.full(tokens_BS.shape, 1 / tokens_BS.size, np.float32),
        np.zeros(batch, np.int32),
        domain_slots_B,
        tables_LDV,
        *slabs,
    ]
    if exchange is not None:
        arrays += planned_counts(tokens_BS, domain_slots_B, tables_LDV)
    functions = CompiledFunctions(decoder, len(slabs))
    outputs, (inputs, dense) = functions.upper_step(0, tokens_BS.size, *(Tensor(array) for array in arrays))
    names = [parameter.name for parameter in decoder.upper_parameters]
    dense = {name: each.asnumpy() for name, each in zip(names, dense, strict=True)}
    return float(outputs[0].asnumpy()), [each.asnumpy() for each in inputs], dense


@both_dispatchers
def test_no_gradient_of_a_training_step_is_lost(exchange):
    loss, inputs, dense = upper_step(exchange)

    assert loss > 0
    assert len(inputs) == 1 + 2 * SLOTS * 4
    for gradient in inputs:
        assert np.abs(gradient).max() > 0
    for name, gradient in dense.items():
        assert np.abs(gradient).max() > 0, name


def test_both_dispatchers_give_the_same_training_step(alone):
    local_loss, local_inputs, local_dense = upper_step(None)

    loss, inputs, dense = upper_step(alone)

    assert loss == pytest.approx(local_loss, rel=1e-6)
    for gradient, expected in zip(inputs, local_inputs, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)
    for name, expected in local_dense.items():
        np.testing.assert_allclose(dense[name], expected, rtol=1e-5, atol=1e-7, err_msg=name)


def test_the_exchange_group_chooses_the_dispatcher(alone):
    config = load_config(None, SETTINGS)

    local = RoutedExperts(Init(config), None)
    shared = RoutedExperts(Init(config), alone)

    assert isinstance(local.dispatcher, LocalTokenDispatcher)
    assert isinstance(shared.dispatcher, AllToAllTokenDispatcher)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class PairProduct(nn.Cell):
    """Σ 2x · 3x; the two factors are passed on in a plain tuple or in a NamedTuple."""

    def __init__(self, named):
        super().__init__(auto_prefix=False)
        self.named = named

    def construct(self, x):
        if self.named:
            pair = Pair(x * 2, x * 3)
            return (pair.first * pair.second).sum()
        first, second = (x * 2, x * 3)
        return (first * second).sum()


@pytest.mark.parametrize(("named", "expected"), [(False, 12.0), (True, 0.0)])
def test_a_named_tuple_in_a_compiled_function_loses_its_gradient(named, expected):
    """The trap that routing and state avoid: no error, the right value, and a gradient of zeros.

    If a later MindSpore gives 12 here for a NamedTuple too, plain tuples are no longer needed.
    """
    function = ms.value_and_grad(PairProduct(named), 0)

    @ms.jit
    def step(x):
        return function(x)

    value, gradient = step(Tensor(np.ones(3, np.float32)))

    assert float(value.asnumpy()) == 18.0
    np.testing.assert_array_equal(gradient.asnumpy(), np.full(3, expected, np.float32))
