"""kill -9 of one rank: all end, the log names it, and the training goes on as if nothing had happened."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from launching import finish, start_ranks

STEPS = 24


def words_of(overrides):
    return ["train", *(word for key, value in overrides.items() for word in (f"--{key}", str(value)))]


def losses_of(root):
    path = root / "metrics.jsonl"
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_and_the_training_goes_on(parallel_overrides, tmp_path, victim):
    def overrides(name):
        shutil.copytree(Path(parallel_overrides["training.output_dir"]) / "prepared", tmp_path / name)
        return parallel_overrides | {
            "training.output_dir": str(tmp_path),
            "training.run_name": name,
            "training.steps": STEPS,
            "checkpoint.save_steps": 5,
            "parallelism.data_parallel": 2,
            "parallelism.expert_parallel": 2,
        }

    program = ["python", "-m", "mindpangu"]
    straight = overrides("straight")
    assert finish(start_ranks(2, program, words_of(straight), tmp_path / "logs0"), tmp_path) == 0

    killed, root = overrides("killed"), tmp_path / "killed"
    process = start_ranks(2, program, words_of(killed), tmp_path / "logs1")
    while len(losses_of(root)) < 8:
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(json.loads((root / ".watch" / f"rank_{victim}.json").read_text())["pid"], signal.SIGKILL)
    assert finish(process, tmp_path, 120) != 0
    other = (tmp_path / "logs1" / "msrun_log" / f"worker_{1 - victim}.log").read_text()
    assert f"mindpangu: error: rank {1 - victim}: rank {victim} on " in other
    assert "is dead; its last step was " in other

    resumed = start_ranks(2, program, [*words_of(killed), "--resume"], tmp_path / "logs2")
    assert finish(resumed, tmp_path) == 0
    assert losses_of(root) == losses_of(tmp_path / "straight")
