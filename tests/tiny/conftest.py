"""Fake trials: a program that writes made-up measures replaces the training process."""

import pytest

PROGRAM = """
import json, math, sys, yaml
from pathlib import Path

folder = Path(sys.argv[1])
inputs = json.loads(sys.argv[sys.argv.index("--inputs") + 1])
with open(folder / "starts", "a") as starts:
    starts.write("x")
if (folder.parent / f"fail_{folder.name}").exists():
    print("error: no luck")
    sys.exit(1)
if (folder.parent / f"crash_{folder.name}").exists():
    raise ValueError("a defect")
if (folder.parent / f"wait_{folder.name}").exists():
    (folder / "waiting").touch()
    sys.stdin.read()
    (folder / "ended").touch()
    sys.exit(130)
config = yaml.safe_load((folder / "config.yaml").read_text())
model, training, schedule = (config[section] for section in ("model", "training", "lr_scheduler"))
# the best rate grows with the square root of the batch; deep models are better, wide ones faster
best = 1e-3 * math.sqrt(training["global_batch_size"] / 4)
loss = 1 + math.log(schedule["learning_rate"] / best) ** 2 - 0.01 * model["num_layers"]
result = {
    "inputs": inputs, "bits_per_byte": loss,
    "heldout": [{"domain": "en", "loss": 2.0, "bits_per_byte": loss}],
    "final_loss": 2.0, "train_tokens_per_s": 10.0 * model["hidden_size"],
    "decode_tokens_per_s": 100 / model["num_layers"],
}
(folder / "trial.json").write_text(json.dumps(result))
"""


@pytest.fixture
def fake_trials(tmp_path, monkeypatch):
    """Replaces the program of trials; returns starts(folder), which maps trial names to their numbers of starts.

    A file fail_<name>, crash_<name> or wait_<name> next to a trial's folder makes it fail, crash, or wait until it is
    told to end.
    """
    from mindpangu.tiny.trials import pool

    script = tmp_path / "fake_trial.py"
    script.write_text(PROGRAM, encoding="utf-8")
    monkeypatch.setattr(pool, "PROGRAM", (str(script),))
    return lambda folder: {path.parent.name: len(path.read_text()) for path in folder.glob("*/starts")}
