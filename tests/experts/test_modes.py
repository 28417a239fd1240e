"""The settings of the section `experts`: where the experts lie that a step computes from, and which of them move."""

from unittest.mock import MagicMock

import mindspore as ms
import numpy as np
import pytest

from mindpangu.experts import Link, modes, open_experts
from mindpangu.experts.device_slabs import StagedSlabs, StoreViews
from mindpangu.experts.npu_slabs import NpuSlabs
from tests.experts.conftest import open_store, random_plan, run_steps


@pytest.mark.parametrize(
    ("changes", "kind", "moves"),
    [
        ({}, StoreViews, False),
        ({"experts__staging": "true"}, StagedSlabs, True),
        ({"experts__mode": "host_full"}, StagedSlabs, True),
        ({"context__precision": "fp16"}, StagedSlabs, True),
        ({"context__device_target": "Ascend"}, NpuSlabs, True),
    ],
)
def test_the_settings_choose_where_experts_lie(monkeypatch, changes, kind, moves):
    monkeypatch.setattr(ms.runtime, "Stream", MagicMock())
    config, store = open_store(**changes)

    slabs = open_experts(store, config)._slabs

    assert type(slabs) is kind
    assert slabs.moves is moves


@pytest.mark.parametrize(
    ("precision", "computed", "on_host"),
    [("fp16", ms.float16, np.float16), ("bf16", ms.bfloat16, np.float32)],
)
def test_an_npu_gets_experts_in_the_number_format_of_its_computation(monkeypatch, precision, computed, on_host):
    """Its gradients are copied to buffers, because its memory is not the host's."""
    monkeypatch.setattr(modes, "NpuSlabs", MagicMock())
    monkeypatch.setattr(modes, "HostGradients", MagicMock())
    config, store = open_store(context__device_target="Ascend", context__precision=precision)
    link = Link(1)

    open_experts(store, config, link)

    modes.NpuSlabs.assert_called_once_with(store, computed)
    modes.HostGradients.assert_called_once_with(store, link, on_host)


@pytest.mark.parametrize("changes", [{}, {"experts__mode": "device"}])
def test_a_cpu_computes_from_the_store_itself(changes):
    config, store = open_store(**changes)
    experts = open_experts(store, config)
    plan = random_plan(np.random.default_rng(0), store, [2, 0])
    experts.begin([plan])

    slabs = experts.slabs(plan)

    for slab, weights in zip(slabs, store.lookup((2, 0)), strict=True):
        assert np.shares_memory(slab.asnumpy(), weights)


def test_experts_in_the_stores_own_memory_do_not_move():
    """Not even those that two micro-batches or two slots of one need, whose gradients are summed."""
    config, store = open_store()
    rng = np.random.default_rng(0)
    steps = [[random_plan(rng, store, [0, 1]), random_plan(rng, store, [1, 1])], [random_plan(rng, store, [1, 3])]]

    _, traffics, _ = run_steps(config, store, steps)

    assert [(each.bytes_to_device, each.bytes_to_host) for each in traffics] == [(0, 0)] * 2


def test_half_precision_halves_the_bytes_that_move():
    config, store = open_store(experts__mode="host_full", context__precision="fp16")
    plan = random_plan(np.random.default_rng(0), store, [0])

    _, (traffic,), _ = run_steps(config, store, [[plan]])

    num_parameters = sum(int(np.prod(shape)) for shape in store.shapes.values())
    assert traffic.bytes_to_device == traffic.bytes_to_host == 2 * 2 * (3 + 2 + 3 + 3) * num_parameters


def test_host_full_updates_only_the_experts_of_the_trained_domains():
    config, store = open_store(experts__mode="host_full", training__train="experts:zh, code")
    trained = [domain.name in ("zh", "code") for domain in store.domains]
    plan = random_plan(np.random.default_rng(0), store, [trained.index(True)])

    run_steps(config, store, [[plan]])

    expected_LMA = store.exists_LMA & np.array(trained)[:, None]
    np.testing.assert_array_equal(store.step_counts, expected_LMA.astype(int))
    assert expected_LMA.sum() == 2 * (2 + 3)
