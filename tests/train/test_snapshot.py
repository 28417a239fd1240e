"""The ranks of a mesh write every element of a checkpoint once, and together all of it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from mindpangu.errors import CheckpointError
from mindpangu.parallel.mesh import Mesh
from mindpangu.parallel.sharding import TensorSlice
from mindpangu.train import checkpointing as module
from mindpangu.train.checkpointing import take_snapshot, write_checkpoint

SHAPES = {"sharded.weight": (8, 6), "copied.weight": (8, 3), "copied.bias": (5,)}
MESHES = [Mesh(), Mesh(data=2), Mesh(tensor=2), Mesh(data=4, tensor=2, expert=2)]


class Parameter:
    """A parameter that tells which rank it is from."""

    def __init__(self, name, shape, rank):
        self.name = name
        self.shape = shape
        self.values = np.full(shape, float(rank), np.float32)

    def asnumpy(self):
        return self.values


def train_step_of(mesh, rank, divides):
    """Returns what a snapshot takes from a rank. The ranks of a tensor group divide the sharded weight; those with the
    same parameters divide the moments of every matrix if `divides`."""
    coordinates = mesh.coordinates(rank)
    data = rank // mesh.tensor
    slices = {
        name: TensorSlice.equal(shape, 1 if name == "sharded.weight" else None, coordinates.tensor, mesh.tensor)
        for name, shape in SHAPES.items()
    }
    divided = {name: divides and mesh.data > 1 and len(shape) > 1 for name, shape in SHAPES.items()}
    moments = {
        name: (part.rows(data, mesh.data) if divided[name] else part).local_shape for name, part in slices.items()
    }
    return SimpleNamespace(
        finish=lambda: None,
        updates=6,
        guard=SimpleNamespace(state=lambda: {"loss": [1.5], "global_norm": [2.5]}),
        loss_scale=SimpleNamespace(state=lambda: {"value": 4.0, "steps_without_overflow": 3}),
        decoder=SimpleNamespace(
            parameters={name: Parameter(name, part.local_shape, rank) for name, part in slices.items()}, slices=slices
        ),
        optimizer=SimpleNamespace(
            divided=divided,
            moment1={name: Parameter(f"adam_m.{name}", shape, rank) for name, shape in moments.items()},
            moment2={name: Parameter(f"adam_v.{name}", shape, rank) for name, shape in moments.items()},
        ),
        processes=SimpleNamespace(
            mesh=mesh, data=data, coordinates=coordinates, dense=SimpleNamespace(rank=data, size=mesh.data)
        ),
        model=SimpleNamespace(store="the store"),
    )


@pytest.fixture
def snapshot(monkeypatch):
    """snapshot(step) takes one after step 7; nothing is taken of the experts."""
    monkeypatch.setattr(module, "StoreSnapshot", lambda store: f"snapshot of {store}")
    return lambda step: take_snapshot(step, 7, {"samples_taken": [7]}, {"data": "abc"}, "def")


@pytest.mark.parametrize("divides", [False, True])
@pytest.mark.parametrize("mesh", MESHES)
def test_the_ranks_write_every_element_of_parameters_and_moments_once(snapshot, mesh, divides):
    times = {
        f"{kind}{name}": np.zeros(shape, int) for name, shape in SHAPES.items() for kind in ("", "adam_m.", "adam_v.")
    }

    for rank in range(mesh.size):
        dense = snapshot(train_step_of(mesh, rank, divides)).dense
        for name, array in dense.arrays.items():
            part = dense.slices[name]
            assert array.shape == part.local_shape
            assert (array == rank).all()
            part.put(part.of(times[name]) + 1, times[name])

    for name, count in times.items():
        np.testing.assert_array_equal(count, np.ones_like(count), err_msg=name)


def test_a_snapshot_does_not_change_with_the_training(snapshot):
    step = train_step_of(Mesh(), 0, False)

    taken = snapshot(step)
    for parameter in step.decoder.parameters.values():
        parameter.values += 1

    assert all((array == 0).all() for array in taken.dense.arrays.values())
    assert taken.experts == "snapshot of the store"


def test_a_snapshot_is_taken_once_the_updates_are_done(snapshot):
    step = train_step_of(Mesh(), 0, False)
    step.finish = lambda: step.optimizer.moment1["copied.bias"].values.fill(9)

    assert (snapshot(step).dense.arrays["adam_m.copied.bias"] == 9).all()


def test_the_state_has_all_that_a_resumed_training_needs(snapshot):
    assert json.loads(snapshot(train_step_of(Mesh(), 0, False)).state) == {
        "step": 7,
        "updates": 6,
        "loader": {"samples_taken": [7]},
        "spikes": {"loss": [1.5], "global_norm": [2.5]},
        "loss_scale": {"value": 4.0, "steps_without_overflow": 3},
        "digests": {"data": "abc"},
        "loaded": "def",
    }


class Writer:
    """Records the files that a rank writes."""

    def __init__(self, rank):
        self.rank = rank
        self.folder = f"folder of {rank}"
        self.written = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.written["manifest"] = True

    def write(self, name, data):
        self.written[name] = data


class Experts:
    step_counts = "the counts"
    closed = False

    def close(self):
        self.closed = True


@pytest.fixture
def write(monkeypatch, tmp_path):
    """write(rank, fails=()) returns (result, writer, experts, checkpoints that were published)."""

    def run(rank, fails=()):
        def write_model(writer, model, dense, experts, previous):
            assert (dense, previous) == ("the dense tensors", "earlier experts")
            writer.write("model", experts)
            if "write" in fails:
                raise CheckpointError("no space")

        def finish_publishing(*arguments):
            published.append(arguments)
            if "publish" in fails:
                raise OSError(30, "Read-only file system")

        published = []
        experts = Experts()
        writer = Writer(rank)
        monkeypatch.setattr(module, "write_model", write_model)
        monkeypatch.setattr(module, "finish_publishing", finish_publishing)
        monkeypatch.setattr(module, "CheckpointReader", lambda folder: f"reader of {folder}")
        folder = SimpleNamespace(checkpoints="checkpoints", latest=tmp_path / "latest.txt")
        model = SimpleNamespace(config=SimpleNamespace(checkpoint=SimpleNamespace(keep_last=3)))
        snapshot = module.TrainingSnapshot(b"the state", "the dense tensors", experts)
        try:
            result = write_checkpoint(folder, writer, model, snapshot, "earlier experts")
        except CheckpointError as error:
            result = error
        return result, writer, experts, published

    return run


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_first_rank_writes_the_state_and_publishes(write, tmp_path, rank):
    result, writer, experts, published = write(rank)

    assert writer.written == {"model": experts, "manifest": True} | ({} if rank else {"state.json": b"the state"})
    assert published == ([] if rank else [("checkpoints", tmp_path / "latest.txt", 3, "folder of 0")])
    assert (result.reader, result.step_counts) == (f"reader of folder of {rank}", "the counts")
    assert experts.closed


def test_the_experts_are_released_if_they_cannot_be_written(write):
    result, _, experts, published = write(0, fails=["write"])

    assert str(result) == "no space"
    assert experts.closed
    assert not published


def test_a_checkpoint_that_cannot_be_published_is_complete_all_the_same(write):
    result, writer, _, _ = write(0, fails=["publish"])

    assert writer.written["manifest"]
    assert str(result) == (
        "checkpoint folder of 0 is complete, but latest.txt cannot be written or older checkpoints cannot be removed: "
        "Read-only file system; fix this, then continue with --resume"
    )
