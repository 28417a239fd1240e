"""Files written by an older version load, extract and resume, and give the same results.

`fixtures/written_by_0_1_0/README.md` describes the files and how they were made. Losses agree to 1e-5, because another
CPU may round differently; files that a verb only copies or rearranges are identical byte for byte.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mindpangu.checkpoint import CheckpointReader
from mindpangu.cli.main import main
from mindpangu.data import TokenShards, heldout_batches
from mindpangu.language_model import load_model
from mindpangu.train.metrics import read_metrics
from tests.lifecycle.conftest import forward_of_export

OLDER = Path(__file__).parent / "fixtures" / "written_by_0_1_0"
EXPECTED = json.loads((OLDER / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def older(tmp_path, monkeypatch):
    """A copy of the older files, which is the current directory: the paths in them are relative to it."""
    shutil.copytree(OLDER, tmp_path / "older")
    monkeypatch.chdir(tmp_path / "older")


def mindpangu(*words):
    assert main([str(word) for word in words]) == 0


def close_to(expected):
    """Returns an equal of nested dictionaries whose numbers may differ by 1e-5 of their size."""
    if isinstance(expected, dict):
        return {key: close_to(value) for key, value in expected.items()}
    return pytest.approx(expected, rel=1e-5)


def losses(run):
    return {
        str(record["step"]): {key: record[key] for key in ("loss", "global_norm", "domains")}
        for record in read_metrics(Path(run) / "metrics.jsonl")
    }


def heldout(run):
    report = json.loads((Path(run) / "evaluation.json").read_text(encoding="utf-8"))
    return {
        each["domain"]: {key: each[key] for key in ("loss", "unigram_loss", "loss_as")} for each in report["domains"]
    }


def bytes_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def heldout_batch():
    config = CheckpointReader(Path("run")).config()
    shards = TokenShards.open(Path("run/data"), verify=True)
    return next(iter(heldout_batches(shards, "zh", config, config.training.local_batch_size)))


def mean(losses_BS, mask_BS):
    return float((losses_BS * mask_BS).sum(dtype=np.float64) / mask_BS.sum(dtype=np.float64))


def loss_of_first_domain(model, batch):
    losses_BS = model.token_losses(batch, (0,) * len(batch.domain_of_slot))
    return mean(losses_BS, batch.loss_mask_BS)


def test_an_older_run_continues_with_the_same_losses():
    lines_of_the_older_steps = Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()

    mindpangu("train", "--resume", "--config", "run/config.yaml", "--training.steps", 8)
    mindpangu("evaluate", "--checkpoint", "run")

    assert Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()[:4] == lines_of_the_older_steps
    assert losses("run") == close_to(EXPECTED["training"])
    assert heldout("run") == close_to(EXPECTED["heldout_of_step_8"])


def test_the_stages_of_an_older_run_are_up_to_date(capsys):
    for stage in (("tokenizer", "train"), ("data", "prepare"), ("routing", "build"), ("train", "--resume")):
        mindpangu(*stage, "--config", "run/config.yaml")
        assert "up to date" in capsys.readouterr().out, stage

    mindpangu("evaluate", "--checkpoint", "run")
    assert "up to date" in capsys.readouterr().out


def test_an_older_checkpoint_has_the_same_heldout_losses():
    Path("run/evaluation.json").unlink()

    mindpangu("evaluate", "--checkpoint", "run")

    assert heldout("run") == close_to(EXPECTED["heldout_of_step_4"])


def test_a_third_round_follows_two_older_ones():
    for name in ("tokenizer", "data", "routing"):
        shutil.copytree(f"run/{name}", f"rounds_run/{name}")

    options = ("--rate", 0.5, "--parts", 1, "--rounds", 3)
    mindpangu("tiny", "rounds", *options, "--config", "rounds_run/config.yaml", "--training.steps", 4)

    assert losses("rounds_run") == close_to(EXPECTED["rounds"])


def test_an_older_extracted_checkpoint_has_the_same_loss():
    model = load_model(CheckpointReader(Path("extracted")))

    loss = loss_of_first_domain(model, heldout_batch())

    assert {"zh": loss} == close_to(EXPECTED["extracted"])


def test_the_same_is_extracted_from_an_older_checkpoint():
    mindpangu("extract", "--domains", "zh", "--weights-only", "--checkpoint", "run", "--out", "again")

    again_bytes = bytes_in("again")
    older_bytes = bytes_in("extracted")
    assert again_bytes.keys() == older_bytes.keys()
    # the configuration may have other names for its keys, and the manifest has its hash
    changed = {Path(name).name for name in older_bytes if again_bytes[name] != older_bytes[name]}
    assert changed <= {"config.yaml", "manifest.json"}


def test_the_same_is_exported_from_an_older_checkpoint():
    mindpangu("extract", "--domains", "zh", "--export", "--checkpoint", "run", "--out", "again")

    assert bytes_in("again") == bytes_in("export")


def test_an_older_export_has_the_same_loss():
    """mindpangu has no reader for exports, so the loss is computed with the tests' own NumPy forward pass."""
    batch = heldout_batch()
    settings = json.loads(Path("export/config.json").read_text(encoding="utf-8"))

    logits_BSV = forward_of_export(load_file("export/model.safetensors"), settings, batch.tokens_BS)

    log_p_BSV = logits_BSV - np.log(np.exp(logits_BSV).sum(-1, keepdims=True))
    losses_BS = -np.take_along_axis(log_p_BSV, batch.targets_BS[..., None].astype(np.int64), -1)[..., 0]
    assert {"zh": mean(losses_BS, batch.loss_mask_BS)} == close_to(EXPECTED["export"])


def test_older_domains_with_their_own_tokenizers_are_read_and_extracted():
    model = load_model(CheckpointReader(Path("added")))

    scores_BV = model.next_token_logits(np.array([[10, 20, 30, 40]], np.int32), 1, 3)
    mindpangu("extract", "--domains", "chemistry", "--checkpoint", "added", "--out", "chemistry")

    assert loss_of_first_domain(model, heldout_batch()) == close_to(EXPECTED["added"]["zh"])
    np.testing.assert_allclose(scores_BV[0, :8], EXPECTED["added"]["chemistry"], rtol=1e-5)
    tokenizers = [path.name for path in Path("chemistry").rglob("*.model")]
    assert tokenizers == ["chemistry.model"]
