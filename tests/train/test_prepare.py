"""Before training, ranks that exchange rows compile the step for every vocabulary and capacity that it can have."""

from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor

from mindpangu.config import load_config
from mindpangu.data import Loader
from mindpangu.data.route_plan import capacities
from mindpangu.train.run import open_run, set_device
from mindpangu.train.step import TrainStep

RANK = 1
SIZE = 2
ROWS = 4 * 16
"""Tokens of a micro-batch."""
EXCHANGE = 3
"""Number of inputs that say how many rows are sent, received, and for which expert."""


class _Called(Exception):
    pass


class Functions:
    """Records what the functions of a step are called with; `raised` ends the step then."""

    def __init__(self, raised=None):
        self.lower = []
        self.upper = []
        self._raised = raised

    def lower_forward(self, *inputs):
        self.lower.append(inputs)
        return Tensor(np.zeros((ROWS, 16), np.float32))

    def upper_step(self, *inputs):
        self.upper.append(inputs)
        if self._raised:
            raise self._raised
        return (Tensor(np.float32(0)), None, None), None


@pytest.fixture
def opened(tiny_overrides):
    """(step of the second of two ranks that exchange rows, loader); nothing is compiled."""
    config = load_config(None, tiny_overrides | {"data.domains_per_step": "2"})
    set_device(config)
    run = open_run(config)
    run.model.store.initialize()
    step = TrainStep(run.model)
    step.reports = []
    step.processes = SimpleNamespace(
        exchange=SimpleNamespace(rank=RANK, size=SIZE), report_status=lambda doing: step.reports.append(doing)
    )
    step.in_one_function = False
    step.functions = Functions()
    return step, Loader(run.shards, run.model.domains, config)


def inputs_of_a_step(step, loader):
    """Returns (inputs of the lower half, inputs of the upper half) of a step on data, without those of an exchange."""
    batch = loader.next_step().micro_batches[0]
    plan = step.model.planner.plan(batch)
    step.experts.begin([plan], None)
    step.functions = Functions(raised=_Called())
    with pytest.raises(_Called):
        step._micro_step(batch, plan, Tensor(batch.loss_mask_BS.astype(np.float32)), {})
    return step.functions.lower[0], step.functions.upper[0]


def kinds(inputs):
    return [(each.shape, each.dtype) if isinstance(each, Tensor) else type(each) for each in inputs]


def test_the_step_is_compiled_for_every_capacity_with_inputs_like_those_of_data(opened):
    step, loader = opened

    step.prepare()

    prepared = step.functions
    lower, upper = inputs_of_a_step(step, loader)
    assert [inputs[1] for inputs in prepared.upper] == capacities(ROWS, SIZE)
    assert step.reports == [f"compiling the step for {size} incoming rows" for size in capacities(ROWS, SIZE)]
    for inputs in prepared.lower:
        assert kinds(inputs) == kinds(lower)
    for inputs in prepared.upper:
        assert kinds(inputs[:-EXCHANGE]) == kinds(upper)
        assert inputs[0] == upper[0]


def test_in_this_step_every_rank_keeps_its_own_rows(opened):
    """So it fits every capacity, and no rank waits for another."""
    step, _ = opened

    step.prepare()

    store = step.model.store
    for inputs in step.functions.upper:
        send_LR, receive_LR, arriving_LRG = (each.asnumpy() for each in inputs[-EXCHANGE:])
        np.testing.assert_array_equal(send_LR, [[0, ROWS]] * store.num_layers)
        np.testing.assert_array_equal(receive_LR, send_LR)
        assert arriving_LRG.shape == (store.num_layers, SIZE, 2 * store.group_size)
        assert (arriving_LRG[:, RANK, 0] == ROWS).all()
        assert arriving_LRG.sum() == store.num_layers * ROWS


def without_a_model(exchange, vocabularies, held):
    """Returns (step that records which domains it compiles for, those domains)."""
    step = object.__new__(TrainStep)
    compiled = []
    step.processes = SimpleNamespace(exchange=exchange)
    step.model = SimpleNamespace(
        domains=[SimpleNamespace(vocabulary=name) for name in vocabularies],
        store=SimpleNamespace(share=SimpleNamespace(has=lambda domain: domain in held)),
    )
    step._compile_upper_step = compiled.append
    return step, compiled


def test_one_domain_of_every_vocabulary_is_compiled_among_those_that_the_rank_holds():
    vocabularies = ["main", "zh", "main", "zh", "code"]
    step, compiled = without_a_model("a group", vocabularies, held=(0, 1, 3))

    step.prepare()

    assert sorted(vocabularies[domain] for domain in compiled) == ["main", "zh"]
    assert set(compiled) <= {0, 1, 3}


def test_ranks_that_exchange_nothing_compile_nothing_before():
    step, compiled = without_a_model(None, ["main"], held=(0,))

    step.prepare()

    assert not compiled
