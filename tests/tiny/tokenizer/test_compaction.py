"""`mindpangu tiny tokenizer`: the folder with the compact tokenizer, and a checkpoint re-mapped to it."""

import json
from pathlib import Path

import numpy as np
import pytest

from mindpangu.checkpoint import CheckpointReader
from mindpangu.cli.main import main
from mindpangu.config import load_config
from mindpangu.data import Batch
from mindpangu.model.parameter_count import count_parameters
from mindpangu.tiny.tokenizer.piece_counts import PieceCounts
from mindpangu.tiny.tokenizer.size_curve import embedding_share
from mindpangu.tokenizer import Tokenizer
from tests.lifecycle.conftest import Forward, train_tiny

RECIPES = Path(__file__).resolve().parents[3] / "recipes"


@pytest.fixture(scope="module")
def model_file(tiny_overrides):
    return f"{tiny_overrides['training.output_dir']}/prepared/tokenizer/main.model"


@pytest.fixture(scope="module", params=["sparse", "dense", "dense pangu_pi"])
def trained(request, tiny_overrides, pangu_pi, tmp_path_factory):
    """The run folder of a trained model."""
    architecture = pangu_pi if request.param == "dense pangu_pi" else {}
    rre_layers = "2" if request.param == "sparse" else "0"
    folder = tmp_path_factory.mktemp("trained")
    return train_tiny(tiny_overrides, folder, "run", **architecture, **{"model.rre_layers": rre_layers})


def run(*words):
    return main(["tiny", "tokenizer", *map(str, words)])


def test_the_folder_has_the_documented_files(model_file, tiny_corpus, tmp_path, capsys):
    out = tmp_path / "new" / "compact"
    words = ("--tokenizer", model_file, "--corpus", tiny_corpus, "--out", out)

    assert run(*words, "--size", 360, "--sizes", "340,380", "--model.hidden_size", "64") == 0

    printed = capsys.readouterr().out
    files = {"tokenizer.model", "counts.safetensors", "report.json", "curve.png"}
    assert {path.name for path in out.iterdir()} == files
    assert Tokenizer.load(out / "tokenizer.model").vocab_size == 360
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((out / "report.json").read_text())
    assert [row["pieces"] for row in report["sizes"]] == [340, 360, 380, 420]
    assert report["sizes"][-1]["coverage_heldout"] == 1
    shares = [row["embedding_share"] for row in report["sizes"]]
    assert shares == sorted(shares)
    coverages = [row["coverage_predicted"] for row in report["sizes"]]
    assert coverages == sorted(coverages)
    assert f"{coverages[1]:.2%}" in printed
    assert "360 of 420 pieces" in printed


def test_counts_are_reused_for_the_same_text_and_split(model_file, tiny_corpus, tmp_path, capsys):
    out = tmp_path / "compact"
    words = ("--tokenizer", model_file, "--corpus", tiny_corpus, "--out", out)
    assert run(*words, "--size", 360) == 0
    counted_at = (out / "counts.safetensors").stat().st_mtime_ns

    assert run(*words, "--size", 350) == 0

    assert "counting again" not in capsys.readouterr().out
    assert (out / "counts.safetensors").stat().st_mtime_ns == counted_at
    assert Tokenizer.load(out / "tokenizer.model").vocab_size == 350

    assert run(*words, "--size", 350, "--data.seed", "1") == 0  # another split

    assert (out / "counts.safetensors").stat().st_mtime_ns > counted_at
    assert "counts.safetensors belongs to another text, split or tokenizer; counting again" in capsys.readouterr().out


def test_the_embedding_share_matches_the_parameter_count():
    config = load_config(None, {"model.rre_layers": "0", "model.hidden_size": "64", "model.vocab_size": "420"})
    count = count_parameters(config)

    assert embedding_share(config, 420) == count.embedding / count.total
    assert embedding_share(config, 100) == pytest.approx(100 * 64 / (count.total - 320 * 64), rel=1e-12)


def test_an_untied_head_counts_as_embedding():
    """The paper counts 2·V·H."""
    config = load_config(RECIPES / "pangu_pi_1b_pro.yaml")

    assert embedding_share(config, 48_000) == 2 * 48_000 * 1792 / count_parameters(config).total


def test_a_checkpoint_is_remapped_and_computes_the_same(trained, tmp_path, tiny_overrides):
    out = tmp_path / "small"

    assert run("--checkpoint", trained, "--size", 370, "--out", out, "--verify") == 0

    before = CheckpointReader(trained)
    after = CheckpointReader(out)
    old, new = (Tokenizer.load(reader.folder / "tokenizer" / "main.model") for reader in (before, after))
    assert new.digest == Tokenizer.load(out / "tokenizer.model").digest
    assert after.config().model.vocab_size == new.vocab_size == 370
    id_of = {old.piece(index): index for index in range(old.vocab_size)}
    kept = np.array([id_of[new.piece(index)] for index in range(370)])

    # the embedding and its moments have the rows of the kept pieces; every other tensor is the same, bit for bit
    (old_name,), (new_name,) = (
        [name for name in reader.files if name.startswith("dense_")] for reader in (before, after)
    )
    old_tensors = before.tensors(old_name)
    new_tensors = after.tensors(new_name)
    assert old_tensors.keys() == new_tensors.keys()
    for name, values in old_tensors.items():
        has_token_rows = name.endswith(("word_embedding", "head.weight"))
        np.testing.assert_array_equal(new_tensors[name], values[kept] if has_token_rows else values)
    assert "adam_m.word_embedding" in new_tensors
    for name in (name for name in before.files if name.startswith("experts/")):
        for tensor, values in before.tensors(name).items():
            np.testing.assert_array_equal(after.tensors(name)[tensor], values)

    # text that needs only kept pieces gets the same logits
    counts = PieceCounts.load(out / "counts.safetensors")
    words = [
        word
        for word in "open close the window table red blue file row and then save".split()
        if set(old.encode(f" {word}")) <= set(kept.tolist())
    ]
    text = "".join(f" {word}" for word in words * 20)
    ids = old.encode(text)
    new_ids = new.encode(text)
    assert counts.train_V.sum() > 0
    assert len(words) > 3
    assert kept[new_ids].tolist() == ids
    old_logits = logits_of(trained, ids)
    new_logits = logits_of(out, new_ids)
    assert old_logits.shape[-1] == 420
    np.testing.assert_allclose(new_logits, old_logits[:, kept], atol=1e-5)


def logits_of(folder, tokens):
    """Returns the logits of the first 16 tokens of a text of the domain en, float32 [16, V]."""
    tokens_BS = np.array([tokens[:16]], np.int32)
    batch = Batch(
        tokens_BS=tokens_BS,
        targets_BS=tokens_BS,
        positions_BS=np.arange(16, dtype=np.int32)[None],
        loss_mask_BS=np.ones((1, 16), np.float32),
        slot_of_sample_B=np.zeros(1, np.int32),
        domain_of_slot=(0,),
        sample_ids_B2=np.zeros((1, 2), np.int64),
    )
    return Forward(folder)(batch, "en")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "10"], "10 pieces is too small"),
        (["--size", "420"], "has 420; ask for fewer"),
        (["--size", "360", "--sizes", "340,5000"], "5,000 pieces would not be smaller"),
        (["--size", "360", "--sizes", "many"], "--sizes is 'many'"),
        (["--size", "360", "--corpus", "nowhere/*.jsonl"], "--corpus pattern 'nowhere/*.jsonl' matches no file"),
        (["--size", "360", "--counts", "."], "--counts . is a folder; give the name of a file"),
        (["--size", "360", "--fields", "body"], "no text in the fields body"),
        (["--size", "360", "--model.depth", "3"], "model.depth"),
    ],
)
def test_mistakes_are_reported_and_write_nothing(model_file, tiny_corpus, tmp_path, capsys, words, message):
    out = tmp_path / "out"
    assert run("--tokenizer", model_file, "--corpus", tiny_corpus, "--out", out, *words) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_an_output_folder_that_is_a_file_is_refused_before_counting(model_file, tiny_corpus, tmp_path, capsys):
    (tmp_path / "out").touch()

    assert run("--tokenizer", model_file, "--corpus", tiny_corpus, "--out", tmp_path / "out", "--size", 360) == 1
    assert f"--out {tmp_path / 'out'} is a file; give the name of a folder" in capsys.readouterr().err


def test_existing_files_are_not_overwritten_by_mistake(model_file, trained, tiny_corpus, tmp_path, capsys):
    out = tmp_path / "out"
    words = ("--corpus", tiny_corpus, "--size", 360)
    assert run("--tokenizer", model_file, "--out", out, *words) == 0

    assert run("--tokenizer", out / "tokenizer.model", "--out", out, "--corpus", tiny_corpus, "--size", 350) == 1
    assert "would be replaced" in capsys.readouterr().err

    assert run("--checkpoint", trained, "--out", trained, *words) == 1
    assert "already has a checkpoint" in capsys.readouterr().err


def test_help_of_the_action(capsys):
    for words in (["tiny", "--help"], ["tiny", "tokenizer", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            main(words)
        assert "tokenizer" in capsys.readouterr().out


def test_the_configuration_is_read_before_and_after_the_action(tiny_overrides, model_file, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"model: {{hidden_size: 32}}\ndata: {{corpus: {tiny_overrides['data.corpus']}}}\n")
    common = ("--tokenizer", model_file, "--size", "360", "--out", str(tmp_path / "out"))
    shares = []

    for words in (("tokenizer", *common, "--config", str(path)), ("--config", str(path), "tokenizer", *common)):
        assert main(["tiny", *words]) == 0
        shares.append(json.loads((tmp_path / "out" / "report.json").read_text())["sizes"][0]["embedding_share"])

    assert shares[0] == shares[1] == embedding_share(load_config(path, {}), 360)
