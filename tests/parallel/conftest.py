"""A tiny PanGu-Σ that 4 ranks can share, and trainings of it that tests share."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the modules that are not tests

from launching import PROJECT, SECONDS, finish, start_ranks

from mindpangu.config import load_config
from mindpangu.data.prepare import prepare_routing


@pytest.fixture(scope="session")
def parallel_overrides(tiny_overrides, tmp_path_factory):
    """The tiny PanGu-Σ with 4 heads and 4 experts per domain, which 4 ranks can share; every step is clipped."""
    output = tmp_path_factory.mktemp("parallel")
    shutil.copytree(Path(tiny_overrides["training.output_dir"]) / "prepared", output / "prepared")
    shutil.rmtree(output / "prepared" / "routing")
    overrides = tiny_overrides | {
        "training.output_dir": str(output),
        "model.num_heads": "4",
        "domains.experts_per_domain": "4",
        "training.local_batch_size": "2",
        "training.global_batch_size": "8",
        "training.max_norm": "0.5",
        "optimizer.expert_eps": "1e-8",
    }
    prepare_routing(load_config(None, overrides), log=lambda text: None)
    return overrides


@pytest.fixture
def run_of(parallel_overrides, tmp_path):
    """run_of(name, **overrides) returns overrides of the tiny PanGu-Σ with its own run folder, tmp_path / name."""

    def make(name, **changes):
        shutil.copytree(Path(parallel_overrides["training.output_dir"]) / "prepared", tmp_path / name)
        changes = {key.replace("__", "."): str(value) for key, value in changes.items()}
        return parallel_overrides | {"training.output_dir": str(tmp_path), "training.run_name": name} | changes

    return make


@pytest.fixture(scope="session")
def trained(parallel_overrides, tmp_path_factory):
    """trained(ranks, steps, **overrides) returns the folder of results of `training_worker.py`; runs each case once."""
    folders = {}

    def run(ranks, steps, **changes):
        overrides = parallel_overrides | {key.replace("__", "."): value for key, value in changes.items()}
        key = (ranks, steps, json.dumps(overrides, sort_keys=True))
        if key not in folders:
            folder = tmp_path_factory.mktemp("trained")
            worker = [Path(__file__).with_name("training_worker.py")]
            arguments = [json.dumps(overrides), folder, steps]
            if ranks == 1:
                environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
                command = [sys.executable, *map(str, worker), *map(str, arguments)]
                subprocess.run(command, env=environment, check=True, timeout=SECONDS)
            else:
                code = finish(start_ranks(ranks, worker, arguments, folder), folder)
                assert code == 0, "\n".join(log.read_text()[-1500:] for log in sorted(folder.rglob("worker_*.log")))
            folders[key] = folder
        return folders[key]

    return run
