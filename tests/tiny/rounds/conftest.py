"""A tiny run with a trained first round of 12 batches, which tests copy."""

import shutil
from pathlib import Path

import pytest

from mindpangu.config import load_config
from mindpangu.train.run import open_run, set_device, train

ROUND_1 = {
    "training.steps": "12",
    "checkpoint.save_steps": "2",
    "model.rre_layers": "1",
    "model.num_layers": "2",
    "lr_scheduler.decay_steps": "12",
}


@pytest.fixture(scope="session")
def first_round(tiny_overrides, tmp_path_factory):
    """(overrides, run folder) of the finished first round. Read-only."""
    from mindpangu.data.prepare import prepare_routing

    parent = tmp_path_factory.mktemp("rounds")
    source = Path(tiny_overrides["training.output_dir"]) / "prepared"
    shutil.copytree(source, parent / "run", ignore=shutil.ignore_patterns("routing"))
    overrides = tiny_overrides | ROUND_1 | {"training.output_dir": str(parent), "training.run_name": "run"}
    config = load_config(None, overrides)
    prepare_routing(config, log=lambda text: None)
    set_device(config)
    train(open_run(config), log=lambda text: None)
    return overrides, parent / "run"


@pytest.fixture
def run_copy(first_round, tmp_path):
    """(overrides, run folder) of a copy that a test may train further."""
    overrides, folder = first_round
    shutil.copytree(folder, tmp_path / "run")
    return overrides | {"training.output_dir": str(tmp_path)}, tmp_path / "run"
