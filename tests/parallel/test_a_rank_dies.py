"""kill -9 of one rank: all end, the log names it, and the training goes on as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import PROJECT, SECONDS, finish, start_ranks

STEPS = 24


def words_of(overrides):
    return ["train", *(word for key, value in overrides.items() for word in (f"--{key}", str(value)))]


def losses_of(root):
    path = root / "metrics.jsonl"
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()] if path.exists() else []


PROGRAM = ["python", "-m", "mindpangu"]


@pytest.fixture
def overrides(parallel_overrides, tmp_path):
    """overrides(name) → those of a run folder of its own."""

    def make(name):
        shutil.copytree(Path(parallel_overrides["training.output_dir"]) / "prepared", tmp_path / name)
        return parallel_overrides | {
            "training.output_dir": str(tmp_path),
            "training.run_name": name,
            "training.steps": STEPS,
            "checkpoint.save_steps": 5,
            "parallelism.data_parallel": 2,
            "parallelism.expert_parallel": 2,
        }

    return make


@pytest.fixture
def straight(overrides, tmp_path):
    """The losses of a training that nobody kills."""
    process = start_ranks(2, PROGRAM, words_of(overrides("straight")), tmp_path / "logs0")
    assert finish(process, tmp_path) == 0
    return losses_of(tmp_path / "straight")


def kill(process, root, victim):
    """kill -9 of a rank in the midst of the training."""
    while len(losses_of(root)) < 8:
        assert process.poll() is None
        time.sleep(0.1)
    (told,) = (root / ".watch").glob(f"*/rank_{victim}.json")
    os.kill(json.loads(told.read_text())["pid"], signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_and_the_training_goes_on(overrides, straight, tmp_path, victim):
    killed, root = overrides("killed"), tmp_path / "killed"
    process = start_ranks(2, PROGRAM, words_of(killed), tmp_path / "logs1")
    kill(process, root, victim)
    assert finish(process, tmp_path, 120) != 0
    other = (tmp_path / "logs1" / "msrun_log" / f"worker_{1 - victim}.log").read_text()
    assert f"mindpangu: error: rank {1 - victim}: rank {victim} on " in other
    assert "is dead; its last step was " in other

    resumed = start_ranks(2, PROGRAM, [*words_of(killed), "--resume"], tmp_path / "logs2")
    assert finish(resumed, tmp_path) == 0
    assert losses_of(root) == straight


@pytest.mark.slow
def test_the_script_starts_a_killed_training_again(overrides, straight, tmp_path):
    words = words_of(overrides("killed") | {"training.restarts": 1})[1:]
    (tmp_path / "empty.yaml").write_text("{}\n")  # the defaults, as in `straight`
    command = ["bash", "recipes/run_cpu_cluster.sh", "2", "--config", str(tmp_path / "empty.yaml"), *map(str, words)]
    environment = os.environ | {"MINDPANGU_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, cwd=PROJECT, start_new_session=True
        )
    kill(process, tmp_path / "killed", 1)
    assert finish(process, tmp_path, 2 * SECONDS) == 0
    log = (tmp_path / "log.txt").read_text()
    assert "is dead; its last step was " in log
    assert "it goes on from the last checkpoint, restart 1 of 1" in log
    assert losses_of(tmp_path / "killed") == straight
