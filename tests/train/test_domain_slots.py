"""Domain slots of any size in the training step: each domain's share of a mixed batch, and unused slots."""

import dataclasses

import numpy as np
import pytest
from mindspore.graph.api import ms_compile_cache

from ascend_ops.rre_dispatch import rre_dispatch
from mindpangu.language_model import as_tensor, group_by_domain

EXPERTS = 3
MIXED = {
    "training.local_batch_size": "8",
    "data.schedule": "mixed",
    "data.domains_per_step": "4",
    "data.mixture": "{bilingual: 1, zh: 2, en: 5, code: 0}",
    "data.eod_reset": "true",  # masks the ends of documents: domains have different numbers of targets
}


def planned(model, loader):
    (batch,) = loader.next_step().micro_batches
    return batch, model.planner.plan(batch)


def arrays(step, gradients):
    """Returns the loss and all gradients of a micro-batch as arrays, by name."""
    dense = {name: gradient.asnumpy() for name, gradient in gradients.dense.items()}
    slabs = step.experts.gradients()
    experts = {(*key, i): each.copy() for key, four in slabs.items() for i, each in enumerate(four)}
    return {"loss": np.float64(gradients.loss), **dense, **experts}


@pytest.mark.parametrize("backend", ["cpu", pytest.param("composed", marks=pytest.mark.slow)])
def test_a_mixed_batch_is_the_weighted_sum_of_its_domains(opened, tiny_overrides, backend):
    step, model, loader = opened(tiny_overrides | MIXED, backend)
    batch, plan = planned(model, loader)
    assert batch.domain_of_slot == (0, 1, 2, 2)
    assert batch.slot_of_sample_B.tolist() == [0, 1, 1, 2, 2, 2, 2, 2]

    mixed = step.gradients([batch], [plan])

    mixed_arrays = arrays(step, mixed)
    mixed_activated = step.experts.traffic.activated
    domains_B = np.array(batch.domain_of_slot)[batch.slot_of_sample_B]
    targets = batch.loss_mask_BS.sum()
    expected = {}
    shares = []
    for domain in (0, 1, 2):
        rows = domains_B == domain
        parts = {name: getattr(batch, name)[rows] for name in vars(batch) if name.endswith(("_BS", "_B", "_B2"))}
        parts |= {"domain_of_slot": (domain,) * 4, "slot_of_sample_B": np.zeros(rows.sum(), np.int32)}
        alone = dataclasses.replace(batch, **parts)
        alone_plan = model.planner.plan(alone)
        gradients = step.gradients([alone], [alone_plan])
        shares.append(alone.loss_mask_BS.sum() / targets)
        assert mixed.domain_loss[domain] == pytest.approx([gradients.loss * shares[-1] * targets, shares[-1] * targets])
        mixed_activated -= step.experts.traffic.activated
        for name, value in arrays(step, gradients).items():
            expected[name] = expected.get(name, 0) + shares[-1] * value
    assert len({round(float(share) * 8, 6) for share in shares} - {1.0, 2.0, 5.0}) > 0  # not simply the samples' shares
    assert mixed_activated == 0
    assert set(mixed_arrays) == set(expected)
    for name, value in expected.items():
        # 1e-9 is for the biases of keys, which change no attention weight: their gradients are rounding errors
        atol = 1e-5 * np.abs(value).max() + 1e-9
        np.testing.assert_allclose(mixed_arrays[name], value, rtol=1e-5, atol=atol, err_msg=str(name))


def slab_gradients(step, model, batch, plan):
    """Returns [layer][slot] → the four gradients that the compiled step returns."""
    inputs = model.inputs(batch.tokens_BS, batch.positions_BS, plan)
    tensors = [as_tensor(slab) for slab in model.store.lookup(plan.domain_of_slot)]
    weights_BS = batch.loss_mask_BS / np.float32(batch.loss_mask_BS.sum())
    _, (slabs, _) = step.functions.whole_step(
        inputs.vocabulary,
        0,
        inputs.rows_BS,
        inputs.tokens_BS,
        inputs.positions_BS,
        as_tensor(batch.targets_BS),
        as_tensor(weights_BS),
        inputs.vocabulary_of_sample_B,
        inputs.domain_slots_B,
        inputs.tables_LDV,
        *tensors,
    )
    size = 4 * len(plan.domain_of_slot)
    flat = [slab.asnumpy() for slab in slabs]
    return [
        [flat[layer * size + 4 * slot : layer * size + 4 * slot + 4] for slot in range(size // 4)] for layer in range(2)
    ]


@pytest.mark.parametrize("backend", ["cpu", pytest.param("composed", marks=pytest.mark.slow)])
def test_an_unused_slot_changes_nothing(opened, tiny_overrides, backend):
    """The same batch without that slot gives the same gradients, and the kernels never touch the slot's experts."""
    step, model, loader = opened(tiny_overrides | MIXED, backend)
    batch, plan = planned(model, loader)
    assert plan.counts_LDA.shape == (2, 4, EXPERTS)
    assert not plan.counts_LDA[:, 3].any()

    with_unused = arrays(step, step.gradients([batch], [plan]))
    assert {key[1] for key in with_unused if isinstance(key, tuple)} == {0, 1, 2}
    for layer in slab_gradients(step, model, batch, plan):
        for slot, four in enumerate(layer):
            assert all(gradient.any() == (slot < 3) for gradient in four)
        for tensor in layer[3]:
            np.testing.assert_array_equal(tensor, 0)

    other_step, other_model, _ = opened(tiny_overrides | MIXED | {"data.domains_per_step": "3"}, backend)
    without = dataclasses.replace(batch, domain_of_slot=batch.domain_of_slot[:3])
    other_plan = other_model.planner.plan(without)
    expected = arrays(other_step, other_step.gradients([without], [other_plan]))

    assert other_plan.imbalance() == plan.imbalance()
    assert set(with_unused) == set(expected)
    for name, value in expected.items():
        if backend == "cpu":
            np.testing.assert_array_equal(with_unused[name], value, err_msg=str(name))
        np.testing.assert_allclose(with_unused[name], value, rtol=1e-5, atol=1e-7, err_msg=str(name))

    if backend == "cpu":
        for layer in range(2):
            for tensor in model.store.weights[layer][3].values():
                tensor[:] = np.nan
        poisoned = dataclasses.replace(plan, domain_of_slot=(0, 1, 2, 3))
        for name, value in arrays(step, step.gradients([batch], [poisoned])).items():
            np.testing.assert_array_equal(value, with_unused[name], err_msg=str(name))


@pytest.mark.parametrize("schedule", ["rotating", "mixed"])
def test_the_plan_counts_what_the_device_counts(opened, tiny_overrides, schedule):
    mixture = {"rotating": "{}", "mixed": "{bilingual: 0.3, zh: 3, en: 1, code: 2}"}[schedule]
    overrides = tiny_overrides | MIXED | {"data.schedule": schedule, "data.mixture": mixture}
    _, model, loader = opened(overrides, "composed")

    sizes = set()
    for _ in range(6):
        batch, plan = planned(model, loader)
        sizes.add(tuple(np.bincount(batch.slot_of_sample_B, minlength=4)))
        tokens_T = batch.tokens_BS.reshape(-1)
        slots_T = np.repeat(batch.slot_of_sample_B, batch.tokens_BS.shape[1])
        x_TH = np.zeros((len(tokens_T), 1), np.float32)
        for layer in range(2):
            table_DV = np.ascontiguousarray(plan.tables_LDV[layer])
            inputs = (as_tensor(array) for array in (x_TH, tokens_T, slots_T, table_DV))
            _, counts_G, _, _ = rre_dispatch(*inputs, EXPERTS)
            np.testing.assert_array_equal(counts_G.asnumpy().reshape(4, EXPERTS), plan.counts_LDA[layer])
    assert sizes == {(2, 2, 2, 2)} if schedule == "rotating" else len(sizes) > 2


def test_other_slots_are_not_compiled_again(opened, tiny_overrides):
    mixture = {"data.mixture": "{bilingual: 0.3, zh: 3, en: 1, code: 2}"}
    step, model, loader = opened(tiny_overrides | MIXED | mixture, "composed")
    sizes = set()
    compiled = None

    for _ in range(5):
        batch, plan = planned(model, loader)
        sizes.add(tuple(batch.slot_of_sample_B.tolist()))
        step.gradients([batch], [plan])
        compiled = compiled or len(ms_compile_cache)
        assert len(ms_compile_cache) == compiled > 0
    assert len(sizes) > 2


def test_imbalance_is_that_of_the_used_slots(opened, tiny_overrides):
    _, model, loader = opened(tiny_overrides | MIXED, "composed")
    _, plan = planned(model, loader)
    loads = [plan.counts_LDA[layer, slot] for layer in range(2) for slot in range(3)]
    expected = np.mean([load.max() / (load.sum() / EXPERTS) for load in loads])

    assert plan.imbalance() == pytest.approx(expected)
    assert np.isfinite(expected)


def test_values_are_grouped_by_the_domain_of_their_slot():
    values_B = np.arange(6.0)
    slots_B = np.array([0, 0, 1, 3, 3, 3], np.int32)

    values_of_domain = group_by_domain(values_B, (4, 7, 9, 4), slots_B)

    assert {domain: values.tolist() for domain, values in values_of_domain.items()} == {4: [0, 1, 3, 4, 5], 7: [2]}
