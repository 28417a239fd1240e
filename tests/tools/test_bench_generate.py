"""tools/bench_generate.py runs and reports whether its bounds hold. No test depends on the figures."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
TOOL = Path(__file__).parents[2] / "tools" / "bench_generate.py"


def test_the_bench_measures_a_checkpoint(tiny_run):
    from mindpangu.config import load_config
    from mindpangu.train.run import open_run, set_device, train

    overrides, folder = tiny_run
    config = load_config(None, overrides | {"training.steps": "1", "lr_scheduler.warmup_steps": "0"})
    set_device(config)
    train(open_run(config), log=lambda text: None)

    options = ["--checkpoint", str(folder), "--new-tokens", "20", "--rounds", "1"]
    done = subprocess.run([sys.executable, str(TOOL), *options], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    for text in ("loop", "batch 1", "batch 8", "bounded", "cache: batch 1 / loop", "batch 8 / batch 1", ">= 5", ">= 3"):
        assert text in done.stdout, done.stdout


def test_a_mistake_is_one_message(tmp_path):
    done = subprocess.run(
        [sys.executable, str(TOOL), "--checkpoint", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("bench_generate: there is no complete checkpoint in")
