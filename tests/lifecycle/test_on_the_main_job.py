"""Extraction from a model of the main job's size: 1,000 held-out samples, and memory."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mindpangu.checkpoint import CheckpointReader
from mindpangu.checkpoint.tensor_file import TensorFile
from mindpangu.cli.main import main
from mindpangu.data import HELDOUT, TokenShards, heldout_batches
from mindpangu.tokenizer import Tokenizer
from tests.lifecycle.conftest import Forward, forward_of_export

ROOT = Path(__file__).parents[2]
SAMPLES = 1000
DOMAINS = ("zh", "code")
WORDS = [
    f"--config={ROOT / 'recipes' / 'cpu_smoke.yaml'}",
    f"--data.corpus=[{ROOT}/recipes/corpus/*.jsonl]",
    "--training.steps=16",
    "--lr_scheduler.warmup_steps=4",
    "--data.heldout_fraction=0.45",
    "--monitor.heldout_samples=1000",
    "--training.run_name=main",
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with much held-out text."""
    output = tmp_path_factory.mktemp("main")
    for stage in (["tokenizer", "train"], ["data", "prepare"], ["routing", "build"], ["train"]):
        assert main([*stage, *WORDS, "--training.output_dir", str(output)]) == 0
    return output / "main"


def test_the_export_gives_the_logits_of_a_thousand_samples(run, tmp_path):
    shards = TokenShards.open(run / "data")
    full = Forward(run)
    samples = 0

    for name in DOMAINS:
        out = tmp_path / name
        assert main(["extract", "--domains", name, "--export", "--checkpoint", str(run), "--out", str(out)]) == 0
        weights = load_file(out / "model.safetensors")
        settings = json.loads((out / "config.json").read_text())
        for batch in list(heldout_batches(shards, name, full.model.config, 8))[: SAMPLES // 8 // len(DOMAINS) + 1]:
            actual = forward_of_export(weights, settings, batch.tokens_BS)
            np.testing.assert_allclose(actual.reshape(-1, actual.shape[-1]), full(batch, name), atol=1e-5)
            samples += len(batch.tokens_BS)

    assert samples >= SAMPLES


def batches_of(shards, config):
    """Yields 1,000 samples of both domains."""
    for name in DOMAINS:
        yield from list(heldout_batches(shards, name, config, 8))[: SAMPLES // 8 // len(DOMAINS) + 1]


def test_a_thousand_samples_agree_bit_for_bit_and_with_fewer_rows_to_1e5(run, tmp_path):
    shards = TokenShards.open(run / "data")

    words = ["extract", "--domains", ",".join(DOMAINS), "--checkpoint", str(run)]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    assert main([*words, "--out", str(tmp_path / "small"), "--vocabulary-of", str(run)]) == 0

    full, whole, small = (Forward(each) for each in (run, tmp_path / "whole", tmp_path / "small"))
    old, new = (
        Tokenizer.load(CheckpointReader(each).folder / "tokenizer" / "main.model") for each in (run, tmp_path / "small")
    )
    pieces = {new.piece(index) for index in range(new.vocab_size)}
    kept = np.array([index for index in range(old.vocab_size) if old.piece(index) in pieces])
    assert len(kept) == new.vocab_size < old.vocab_size
    new_ids = np.full(old.vocab_size, -1, np.int32)
    new_ids[kept] = np.arange(len(kept))
    samples = 0
    for batch in batches_of(shards, full.model.config):
        name = shards.domain_names[batch.domain_of_slot[0]]
        expected = full(batch, name)
        np.testing.assert_array_equal(whole(batch, name), expected)
        np.testing.assert_allclose(small(batch, name, new_ids), expected[:, kept], atol=1e-5)
        samples += len(batch.tokens_BS)
    assert samples >= SAMPLES
    assert min(shards.num_tokens(name, HELDOUT) for name in DOMAINS) > SAMPLES // 2 * 128


@pytest.mark.parametrize("words", [[], ["--vocabulary-of", "{run}"], ["--export"], ["--weights-only"]])
def test_memory_stays_at_two_tensors(run, tmp_path, words):
    reader = CheckpointReader(run)
    largest = max(
        info.num_bytes
        for name in reader.files
        if name.endswith(".safetensors")
        for info in TensorFile(reader.folder / name).tensors.values()
    )
    bare = peak_memory("extract", "--help")
    words = [word.format(run=run) for word in words]
    domains = "zh" if "--export" in words else "zh,en,code"

    used = peak_memory(
        "extract", "--domains", domains, *words, "--checkpoint", str(run), "--out", str(tmp_path / "out")
    )

    assert used <= bare + 200e6 + 2 * largest
    assert sum(entry["bytes"] for entry in reader.files.values()) > 3 * (200e6 + 2 * largest)


def peak_memory(*words):
    """Returns the peak memory in bytes of a verb in a separate process."""
    script = (
        "import resource, subprocess, sys; subprocess.run([sys.executable, '-m', 'mindpangu', *sys.argv[1:]], "
        "check=True, stdout=subprocess.DEVNULL); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
    return 1024 * int(done.stdout)


def test_peak_memory_is_measured():
    """Checks the measurement itself: it notices a process that takes 300 MB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    subprocess.run([sys.executable, "-c", "b = bytearray(b'x') * (300 << 20)"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert after >= max(before, 300 << 10)
