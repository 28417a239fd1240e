"""A checkpoint of any layout can be resumed in any other, with the losses of an uninterrupted training."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from launching import PROJECT, SECONDS, finish, losses_of, start_ranks, words_of

from mindpangu.checkpoint import CheckpointReader

FIRST = 4
LAST = 14


def mesh(data, tensor=1, expert=1):
    return data * tensor, {"data_parallel": data, "tensor_parallel": tensor, "expert_parallel": expert}


MESHES = {
    "alone": mesh(1),
    "data 2": mesh(2),
    "tensor 2": mesh(1, 2),
    "expert 2": mesh(2, 1, 2),
    "data 4, expert 2": mesh(4, 1, 2),
    "expert 4": mesh(4, 1, 4),
    "tensor 2 × expert 2": mesh(2, 2, 2),
    "tensor 4": mesh(1, 4),
}


def train(overrides, name, steps, *options):
    """Trains on a mesh through the command line; returns the losses so far."""
    ranks, axes = MESHES[name]
    changes = {"training.steps": steps, "lr_scheduler.decay_steps": 99}
    changes |= {f"parallelism.{axis}": size for axis, size in axes.items()}
    words = [*words_of(overrides | changes), *options]
    root = Path(overrides["training.output_dir"]) / overrides["training.run_name"]
    if ranks == 1:
        command = [sys.executable, "-m", "mindpangu", *words]
        environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, check=True, timeout=SECONDS, stdout=subprocess.DEVNULL)
    else:
        log = root / "logs"
        code = finish(start_ranks(ranks, ["python", "-m", "mindpangu"], words, log), log)
        assert code == 0, "\n".join(path.read_text()[-1500:] for path in sorted(log.rglob("worker_*.log")))
    losses = losses_of(root)
    assert len(losses) == steps
    return losses


@pytest.fixture
def run(run_of):
    """run(name) returns overrides with a separate run folder."""
    return lambda name: run_of(name, checkpoint__save_steps=FIRST, checkpoint__keep_last=9)


@pytest.fixture(scope="module")
def uninterrupted():
    """A list that `check` fills once with the losses of an uninterrupted training by one process."""
    return []


def check(run, uninterrupted, before, after):
    """Trains on one mesh, resumes on another, and compares the losses with `uninterrupted`."""
    if not uninterrupted:
        uninterrupted += train(run("straight"), "alone", LAST)
    overrides = run("moved")

    train(overrides, before, FIRST)
    losses = train(overrides, after, LAST, "--resume")

    np.testing.assert_allclose(losses, uninterrupted, rtol=1e-5)


@pytest.mark.slow
def test_two_ranks_resume_where_two_others_stopped(run):
    overrides = run("moved") | {"checkpoint.save_steps": "2"}
    before = train(overrides, "tensor 2", 4)

    shutil.rmtree(CheckpointReader(Path(overrides["training.output_dir"]) / "moved").folder)  # back to step 2

    np.testing.assert_allclose(train(overrides, "expert 2", 4, "--resume"), before, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("alone", "tensor 2"), ("expert 2", "alone")])
def test_training_resumes_on_two_ranks_instead_of_one_and_back(run, uninterrupted, before, after):
    check(run, uninterrupted, before, after)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("alone", "tensor 2 × expert 2"),
        ("tensor 2 × expert 2", "data 4, expert 2"),
        ("data 4, expert 2", "tensor 4"),
        ("tensor 4", "expert 4"),
        ("expert 4", "alone"),
        ("data 2", "expert 2"),
    ],
)
def test_training_resumes_on_another_layout_of_four_ranks(run, uninterrupted, before, after):
    check(run, uninterrupted, before, after)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data 2", "tensor 2", "expert 2", "tensor 2 × expert 2"])
def test_the_same_mesh_resumes_bit_for_bit(run, name):
    straight = run("straight")
    stopped = run("stopped")
    expected = train(straight, name, 8)

    train(stopped, name, FIRST)

    assert train(stopped, name, 8, "--resume") == expected
    newest = [
        CheckpointReader(Path(each["training.output_dir"]) / each["training.run_name"]) for each in (straight, stopped)
    ]
    hashes = [
        {file: entry["blake2b"] for file, entry in reader.files.items() if not file.endswith((".json", ".yaml"))}
        for reader in newest
    ]
    assert hashes[0] == hashes[1]
