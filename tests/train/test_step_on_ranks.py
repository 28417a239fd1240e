"""The part of a step that joins ranks, on 8 simulated ones: losses, the global norm, the decision, dense updates.

The mesh is data 4 × tensor 2 with the experts on 2 ranks: every dense parameter is on 4 or 8 ranks, and every expert on
2. The truth is computed from the gradients of all samples, each counted once.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Parameter, Tensor

from mindpangu.config import OptimizerConfig, load_config
from mindpangu.domains import build_domains
from mindpangu.errors import RoutingError
from mindpangu.experts import ExpertTraffic
from mindpangu.language_model import ModelInputs
from mindpangu.parallel.data_parallel import DataGroup
from mindpangu.parallel.mesh import Mesh
from mindpangu.parallel.sharding import TensorSlice
from mindpangu.train.loss_scale import LossScale
from mindpangu.train.optimizer import DenseAdam
from mindpangu.train.spikes import SpikeGuard
from mindpangu.train.step import Gradients, TrainStep
from tests.parallel.simulation import SimulatedRanks

MESH = Mesh(data=4, tensor=2, expert=2)
SETTINGS = OptimizerConfig(betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)
SHAPES = {"sharded.weight": (8, 3), "copied.weight": (4, 2), "copied.bias": (3,)}
"""The ranks of a tensor group have parts of the sharded weight and copies of the others."""
SHARES_OF_LOSS = {0: (1.0, 2.0), 2: (3.0, 4.0)}
"""Domain id → loss per target on each of the first two data indices; the other two have no sample of any domain."""


@pytest.fixture
def ranks(monkeypatch):
    groups = {f"data_{tensor}": MESH.data_group(tensor) for tensor in range(MESH.tensor)}
    return SimulatedRanks(groups | {"world": tuple(range(MESH.size))}).install(monkeypatch)


def random_gradients():
    """Returns name → the gradients of each data index, of the whole tensor."""
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal((MESH.data, *shape)).astype(np.float32) for name, shape in SHAPES.items()}


def initial(name):
    rng = np.random.default_rng(len(name))
    return rng.standard_normal(SHAPES[name]).astype(np.float32)


def local(name, whole, tensor):
    """Returns the part of a whole tensor that a tensor index has."""
    return np.split(whole, MESH.tensor)[tensor] if name == "sharded.weight" else whole


def make_optimizer(rank, divide):
    tensor = MESH.coordinates(rank).tensor
    group = DataGroup(f"data_{tensor}", rank // MESH.tensor, MESH.data)
    parameters = {name: Parameter(Tensor(local(name, initial(name), tensor)), name=name) for name in SHAPES}
    copies = {name: 1 if name == "sharded.weight" else MESH.tensor for name in SHAPES}
    return DenseAdam(parameters, SETTINGS, group, divide, copies), parameters


def reduced(optimizer, rank, gradients):
    tensor = MESH.coordinates(rank).tensor
    mine = {name: Tensor(local(name, each[rank // MESH.tensor], tensor)) for name, each in gradients.items()}
    return optimizer.reduce(mine)


@pytest.mark.parametrize("divide", [False, True])
def test_every_element_of_the_dense_gradients_counts_once_in_the_norm(ranks, divide):
    gradients = random_gradients()

    def contribution(rank):
        optimizer, _ = make_optimizer(rank, divide)
        assert list(optimizer.divided.values()) == [divide, divide, False]
        return optimizer.squared_norm(reduced(optimizer, rank, gradients))

    contributions = ranks.run(contribution)

    truth = sum(float((each.sum(0).astype(np.float64) ** 2).sum()) for each in gradients.values())
    assert sum(contributions) == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize("holders", [1, 2])
def test_parameters_that_all_have_as_many_holders_count_once(ranks, holders):
    gradients = {name: each[0] for name, each in random_gradients().items()}
    parameters = {name: Parameter(Tensor(each), name=name) for name, each in gradients.items()}
    optimizer = DenseAdam(parameters, SETTINGS, copies=dict.fromkeys(SHAPES, holders))

    contribution = optimizer.squared_norm(optimizer.reduce({name: Tensor(each) for name, each in gradients.items()}))

    truth = sum(float((each.astype(np.float64) ** 2).sum()) for each in gradients.values())
    assert holders * contribution == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize("divide", [False, True])
def test_a_dense_update_on_all_ranks_equals_that_of_one(ranks, divide):
    gradients = random_gradients()

    def updated(rank):
        optimizer, parameters = make_optimizer(rank, divide)
        optimizer.update(reduced(optimizer, rank, gradients), 1, 0.1, 0.5)
        return {name: parameter.asnumpy() for name, parameter in parameters.items()}

    results = ranks.run(updated)

    whole = {name: Parameter(Tensor(initial(name)), name=name) for name in SHAPES}
    one = DenseAdam(whole, SETTINGS)
    one.update([Tensor(each.sum(0)) for each in gradients.values()], 1, 0.1, 0.5)
    for rank, result in enumerate(results):
        for name, parameter in whole.items():
            expected = local(name, parameter.asnumpy(), MESH.coordinates(rank).tensor)
            np.testing.assert_allclose(result[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


class Experts:
    """Experts whose gradients have a given squared norm; records updates."""

    def __init__(self, squared_norm):
        self.value = squared_norm
        self.traffic = ExpertTraffic()
        self.updates = []

    def squared_norm(self):
        return self.value

    def update(self, learning_rate, scale):
        self.updates.append((learning_rate, scale))


class Optimizer:
    """Dense parameters whose reduced gradients have a given squared norm; records updates."""

    def __init__(self, squared_norm):
        self.value = squared_norm
        self.updates = []

    def reduce(self, gradients):
        return ["the reduced gradients"]

    def squared_norm(self, gradients):
        return self.value

    def update(self, gradients, step_count, learning_rate, scale):
        self.updates.append((gradients, step_count, learning_rate, scale))


def make_step(ranks, rank, *, mesh=MESH, scale=1.0, dense_norm=1.0, expert_norm=1.0, loss=1.0, trains_dense=True):
    """Returns a step without a model, whose gradients are given."""

    def all_reduce_sum(values):
        arrays, _ = ranks.collective("world", "all_reduce_sum", values)
        return sum(arrays)

    step = object.__new__(TrainStep)
    step.config = load_config(None, {"training.max_norm": "2"})
    step.model = SimpleNamespace(domains=[None] * 4)
    step.processes = SimpleNamespace(
        mesh=mesh,
        replicas=SimpleNamespace(size=mesh.replicas),
        all_reduce_sum=all_reduce_sum,
        report_status=lambda **words: None,
    )
    step.experts = Experts(expert_norm)
    step.optimizer = Optimizer(dense_norm)
    step.trains_dense = trains_dense
    step.guard = SpikeGuard(0, 8)
    step.loss_scale = LossScale(scale, window=1000)
    step.updates = 6
    data = rank // mesh.tensor
    domain_loss = {domain: [losses[data] * 10, 10.0] for domain, losses in SHARES_OF_LOSS.items() if data < 2}
    step.gradients = lambda *arguments: Gradients(loss=loss, dense={"a": None}, domain_loss=domain_loss)
    return step


def test_losses_and_the_norm_are_those_of_all_samples(ranks):
    """Every rank contributes 1 from dense parameters, and 3 from experts that one other rank holds too."""

    def run(rank):
        step = make_step(ranks, rank, loss=0.25 * (rank // MESH.tensor), expert_norm=3.0)
        return step.run([], [], 0.1), step

    results = ranks.run(run)

    for result, step in results:
        assert result.loss == pytest.approx(0.25 * (0 + 1 + 2 + 3))
        assert result.global_norm == pytest.approx(math.sqrt(8 * 1 + 8 * 3 / 2))
        assert result.domain_loss == {0: 1.5, 2: 3.5}
        assert result.skipped is None
        scale = pytest.approx(2 / math.sqrt(20), rel=1e-6)
        assert step.experts.updates == [(0.1, scale)]
        assert step.optimizer.updates == [(["the reduced gradients"], 7, 0.1, scale)]


@pytest.mark.parametrize("skipped", [False, True])
def test_the_watchers_know_what_a_step_is_doing(ranks, skipped):
    """Ranks wait for each other in each of these, so the message of a rank that is lost must name it."""
    step = make_step(ranks, 0, mesh=Mesh(), loss=math.nan if skipped else 1.0)
    reports = []
    step.processes.report_status = lambda doing: reports.append(doing)

    step.run([], [], 0.1)

    assert reports == ["the sum of the dense gradients", "the sum of losses and norms", *["the update"] * (not skipped)]


def test_a_norm_below_the_limit_is_not_scaled(ranks):
    step = make_step(ranks, 0, mesh=Mesh(), dense_norm=1.0, expert_norm=1.0)

    result = step.run([], [], 0.1)

    assert result.global_norm == pytest.approx(math.sqrt(2))
    assert step.experts.updates == [(0.1, 1.0)]


def test_the_loss_scale_is_divided_out(ranks):
    step = make_step(ranks, 0, mesh=Mesh(), scale=8.0, dense_norm=64.0 * 9, expert_norm=64.0 * 16)

    result = step.run([], [], 0.1)

    assert (result.global_norm, result.loss_scale) == (5.0, 8.0)
    assert step.experts.updates == [(0.1, pytest.approx(2 / 5 / 8, rel=1e-6))]
    assert not result.loss_scale_lowered


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["loss", "dense_norm", "expert_norm"])
def test_a_non_finite_value_on_one_rank_skips_the_step_on_all(ranks, name, value):
    def run(rank):
        step = make_step(ranks, rank, scale=4.0, **({name: value} if rank == 5 else {}))
        return step.run([], [], 0.1), step

    results = ranks.run(run)

    for result, step in results:
        assert "loss is" in result.skipped if name == "loss" else "global_norm is" in result.skipped
        assert result.skipped.endswith("; the loss scale goes from 4 to 2")
        assert (result.loss_scale, result.loss_scale_lowered, step.loss_scale.value) == (4.0, True, 2.0)
        assert step.updates == 6
        assert step.experts.updates == step.optimizer.updates == []


def test_a_squared_norm_below_zero_is_not_taken_for_a_norm(ranks):
    step = make_step(ranks, 0, mesh=Mesh(), dense_norm=-5.0)
    assert step.run([], [], 0.1).skipped == "global_norm is nan"


def test_training_of_experts_leaves_the_dense_parameters_out(ranks):
    step = make_step(ranks, 0, mesh=Mesh(), dense_norm=99.0, expert_norm=4.0, trains_dense=False)

    result = step.run([], [], 0.1)

    assert result.global_norm == 2.0
    assert step.optimizer.updates == []
    assert step.experts.updates == [(0.1, pytest.approx(1.0, rel=1e-6))]
    assert step.updates == 7


def test_losses_of_a_domain_are_means_over_the_targets_of_all_micro_batches(ranks):
    """Domain 3 has one sample in each micro-batch, domain 1 one in the first only."""
    step = make_step(ranks, 0, mesh=Mesh())
    total = Gradients()
    mask_BS = np.array([[1, 1, 0], [1, 1, 1]], np.float32)
    for domain_of_slot, losses_B in (((1, 3), [4.0, 6.0]), ((3, 3), [10.0, 2.0])):
        plan = SimpleNamespace(domain_of_slot=domain_of_slot, slot_of_sample_B=np.array([0, 1]))
        step._add_domain_losses(total, SimpleNamespace(loss_mask_BS=mask_BS), plan, np.array(losses_B))

    assert total.domain_loss == {1: [4.0, 2.0], 3: [18.0, 8.0]}


def test_every_target_has_the_same_weight_whichever_micro_batch_it_is_in(ranks):
    """The first micro-batch has 2 targets and the second 6; two other ranks have 8 more."""
    step = make_step(ranks, 0, mesh=Mesh(), scale=4.0)
    begun = []
    done = []
    step.experts.begin = lambda *arguments: begun.append(arguments)
    step.processes.lower_priority = lambda: done.append("lower priority")
    step.processes.report_status = lambda doing: done.append(doing)
    weights = []

    def micro_step(batch, plan, weights_BS, dense):
        weights.append(weights_BS.asnumpy())
        return float(weights[-1].sum()), weights[-1].sum(1)  # every target has the loss 1

    step._micro_step = micro_step
    masks = [np.array([[1, 0, 0], [0, 1, 0]], np.float32), np.ones((2, 3), np.float32)]
    batches = [SimpleNamespace(loss_mask_BS=mask_BS) for mask_BS in masks]
    plan = SimpleNamespace(domain_of_slot=(1, 2), slot_of_sample_B=np.array([0, 1]))

    total = TrainStep.gradients(step, batches, [plan, plan], "upcoming", num_targets=16.0)
    alone = TrainStep.gradients(step, batches, [plan, plan])

    for array, mask_BS in zip(weights[:2], masks, strict=True):
        np.testing.assert_array_equal(array, mask_BS * 4 / 16)  # times the loss scale
    assert begun == [([plan, plan], "upcoming"), ([plan, plan], None)]
    assert done == ["forward and backward", "lower priority"] * 4
    assert total.loss == 8 / 16
    assert total.domain_loss == {1: [4.0, 4.0], 2: [4.0, 4.0]}
    assert alone.loss == 1.0


@pytest.mark.parametrize(("trained", "trains_dense"), [("all", True), ("experts:zh", False)])
def test_a_step_is_made_for_its_model_and_ranks(monkeypatch, trained, trains_dense):
    """Of the parameters, a tensor group of 2 divides one and has copies of the other."""
    config = load_config(
        None,
        {
            "training.train": trained,
            "training.spike_sigma": "3",
            "training.spike_window": "9",
            "model.rre_layers": "2",
            "parallelism.optimizer_sharding": "false",
        },
    )
    experts = SimpleNamespace(moves=False)
    opened_with = []
    monkeypatch.setattr("mindpangu.train.step.open_experts", lambda *given: opened_with.append(given) or experts)
    for name in ("CompiledFunctions", "DenseAdam"):
        monkeypatch.setattr(f"mindpangu.train.step.{name}", lambda *arguments: arguments)
    slices = {"divided": TensorSlice.equal((8, 3), 0, 1, 2), "copied": TensorSlice((3,))}
    model = SimpleNamespace(
        config=config,
        decoder=SimpleNamespace(parameters="the parameters", slices=slices),
        processes=SimpleNamespace(tensor=SimpleNamespace(size=2), dense="dense", replicas="replicas", exchange=None),
        num_slots=3,
        store=SimpleNamespace(tensors=("up", "up_bias", "down", "down_bias")),
        domains=build_domains(config),
    )

    step = TrainStep(model, "the link")

    assert step.trains_dense == trains_dense
    assert opened_with == [(model.store, config, "the link", "replicas")]
    assert step.in_one_function == trains_dense
    assert step.experts is experts
    assert step.functions == (model.decoder, 2 * 3 * 4, trains_dense)
    assert step.optimizer == ("the parameters", config.optimizer, "dense", False, {"copied": 2})
    assert (step.guard.sigma, step.guard.window) == (3, 9)
    assert (step.loss_scale.value, step.updates) == (1.0, 0)


@pytest.mark.parametrize(
    ("rre_layers", "trained", "moves", "exchange", "in_one_function"),
    [
        ("2", "all", False, None, True),
        ("2", "all", True, None, False),  # experts move while the lower half runs
        ("2", "all", False, "ranks", False),  # `prepare` compiles only the upper half for every capacity
        ("2", "experts:zh", False, None, False),  # the lower half has no backward pass
        ("0", "all", True, None, True),
    ],
)
def test_a_step_is_one_function_where_nothing_moves(monkeypatch, rre_layers, trained, moves, exchange, in_one_function):
    config = load_config(None, {"model.rre_layers": rre_layers, "training.train": trained})
    monkeypatch.setattr("mindpangu.train.step.open_experts", lambda *_: SimpleNamespace(moves=moves))
    for name in ("CompiledFunctions", "DenseAdam"):
        monkeypatch.setattr(f"mindpangu.train.step.{name}", lambda *_: None)
    model = SimpleNamespace(
        config=config,
        decoder=SimpleNamespace(parameters={}, slices={}),
        processes=SimpleNamespace(tensor=None, dense=None, replicas=None, exchange=exchange),
        num_slots=1,
        store=SimpleNamespace(tensors=("up", "down")),
        domains=build_domains(config),
    )

    assert TrainStep(model).in_one_function == in_one_function


class Functions:
    """The functions of a step, with given results; records their inputs."""

    LOSS = (Tensor(np.float32(2.5)), Tensor(np.array([1.0, 1.5], np.float32)), Tensor(np.array([0], np.int32)))

    def __init__(self):
        self.calls = []

    def lower_forward(self, *inputs):
        self.calls.append(("lower_forward", *inputs))
        return "h"

    def upper_step(self, *inputs):
        self.calls.append(("upper_step", *inputs))
        return self.LOSS, (("dh", "slab gradient 1", "slab gradient 2"), (1, 10))

    def upper_step_of_experts(self, *inputs):
        self.calls.append(("upper_step", *inputs))
        return self.LOSS, ("slab gradient 1", "slab gradient 2")

    def lower_backward(self, *inputs):
        self.calls.append(("lower_backward", *inputs))
        return (100, 1000)

    def whole_step(self, *inputs):
        self.calls.append(("whole_step", *inputs))
        if inputs[-1] == "slab 2":
            return self.LOSS, (("slab gradient 1", "slab gradient 2"), (1, 10, 100))
        return self.LOSS, (1, 10, 100)


INPUTS = ModelInputs(4, "rows", "tokens", "positions", "vocabularies", "slots", "tables", 80, ("sent", "received"))
UPPER_INPUTS = ("tokens", "positions", "targets", "weights", "vocabularies", "slots", "tables")


def micro_step(monkeypatch, *, rre_layers="2", trains_dense=True, in_one_function=False):
    """Takes a micro-step; returns (result, calls, dense gradients, what the experts received)."""
    monkeypatch.setattr("mindpangu.train.step.as_tensor", lambda array: array)
    received = []
    step = object.__new__(TrainStep)
    step.config = load_config(None, {"model.rre_layers": rre_layers})
    step.trains_dense = trains_dense
    step.in_one_function = in_one_function
    step.functions = Functions()
    monkeypatch.setattr("mindpangu.train.step.settle", lambda tensor: step.functions.calls.append(("settle", tensor)))
    if not trains_dense:
        step.functions.upper_step = step.functions.upper_step_of_experts
    step.model = SimpleNamespace(inputs=lambda tokens, positions, plan: INPUTS)
    names = {name: SimpleNamespace(name=name) for name in ("embedding", "upper", "lower")}
    step.decoder = SimpleNamespace(
        parameters=names,
        upper_parameters=[names["upper"], names["embedding"]],
        lower_parameters=[names["embedding"], names["lower"]],
    )
    step.experts = SimpleNamespace(
        slabs=lambda plan: ("slab 1", "slab 2"),
        receive=lambda plan, gradients: received.append((plan, list(gradients))),
    )
    dense = {"embedding": 5}
    batch = SimpleNamespace(tokens_BS="", positions_BS="", targets_BS="targets")
    loss, losses_B = step._micro_step(batch, "the plan", "weights", dense)
    return (loss, losses_B.tolist()), step.functions.calls, dense, received


def test_a_micro_step_adds_the_gradients_of_both_halves(monkeypatch):
    """The word embedding is in both."""
    result, calls, dense, received = micro_step(monkeypatch)

    assert result == (2.5, [1.0, 1.5])
    assert calls == [
        ("lower_forward", "rows", "positions"),
        ("settle", "h"),
        ("upper_step", 4, 80, "h", *UPPER_INPUTS, "slab 1", "slab 2", "sent", "received"),
        ("settle", "dh"),
        ("lower_backward", "rows", "positions", "dh"),
    ]
    assert dense == {"embedding": 5 + 100 + 10, "upper": 1, "lower": 1000}
    assert received == [("the plan", ["slab gradient 1", "slab gradient 2"])]


def test_a_micro_step_that_trains_experts_stops_at_the_upper_half(monkeypatch):
    result, calls, dense, received = micro_step(monkeypatch, trains_dense=False)

    assert result == (2.5, [1.0, 1.5])
    assert [call[0] for call in calls] == ["lower_forward", "settle", "upper_step"]
    assert dense == {"embedding": 5}
    assert received == [("the plan", ["slab gradient 1", "slab gradient 2"])]


def test_a_micro_step_of_a_dense_model_is_one_function(monkeypatch):
    result, calls, dense, received = micro_step(monkeypatch, rre_layers="0", in_one_function=True)

    assert result == (2.5, [1.0, 1.5])
    assert calls == [("whole_step", 4, 0, "rows", *UPPER_INPUTS)]
    assert dense == {"embedding": 5 + 1, "upper": 10, "lower": 100}
    assert not received


def test_a_micro_step_whose_experts_stay_in_place_is_one_function(monkeypatch):
    result, calls, dense, received = micro_step(monkeypatch, in_one_function=True)

    assert result == (2.5, [1.0, 1.5])
    assert calls == [("whole_step", 4, 0, "rows", *UPPER_INPUTS, "slab 1", "slab 2")]
    assert dense == {"embedding": 5 + 1, "upper": 10, "lower": 100}
    assert received == [("the plan", ["slab gradient 1", "slab gradient 2"])]


def test_ids_that_the_device_finds_invalid_end_the_step(monkeypatch):
    monkeypatch.setattr(Functions, "LOSS", (*Functions.LOSS[:2], Tensor(np.array([3], np.int32))))
    with pytest.raises(RoutingError, match="3 tokens had an id outside the routing tables"):
        micro_step(monkeypatch)
