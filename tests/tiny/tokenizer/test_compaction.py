"""`mindpangu tiny tokenizer`: a folder with the compact tokenizer, and a checkpoint that is re-mapped to it."""

import json
from pathlib import Path

import numpy as np
import pytest

from mindpangu.checkpoint import CheckpointReader
from mindpangu.cli.main import main
from mindpangu.config import load_config
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
    parent = tmp_path_factory.mktemp("trained")
    words = pangu_pi if request.param == "dense pangu_pi" else {}
    return train_tiny(
        tiny_overrides, parent, "run", **words, **{"model.rre_layers": "2" if request.param == "sparse" else "0"}
    )


def call(*words):
    return main(["tiny", "tokenizer", *map(str, words)])


def test_the_folder_is_as_documented(model_file, tiny_corpus, tmp_path, capsys):
    out = tmp_path / "new" / "compact"
    words = ("--tokenizer", model_file, "--corpus", tiny_corpus, "--out", out)
    assert call(*words, "--size", 360, "--sizes", "340,380", "--model.hidden_size", "64") == 0
    printed = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {
        "tokenizer.model", "counts.safetensors", "report.json", "curve.png",
    }  # fmt: skip
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

    counted = (out / "counts.safetensors").stat().st_mtime_ns
    assert call(*words, "--size", 350) == 0  # counts are used again, the rest is replaced
    assert "counting again" not in capsys.readouterr().out
    assert (out / "counts.safetensors").stat().st_mtime_ns == counted
    assert Tokenizer.load(out / "tokenizer.model").vocab_size == 350
    assert call(*words, "--size", 350, "--data.seed", "1") == 0  # another held-out part: counted again
    assert (out / "counts.safetensors").stat().st_mtime_ns > counted
    assert "counts.safetensors is of another text, split or tokenizer; counting again" in capsys.readouterr().out


def test_the_share_of_the_embedding_is_that_of_the_parameters():
    config = load_config(None, {"model.rre_layers": "0", "model.hidden_size": "64", "model.vocab_size": "420"})
    count = count_parameters(config)
    assert embedding_share(config, 420) == count.embedding / count.total
    smaller = embedding_share(config, 100)
    assert smaller == pytest.approx(100 * 64 / (count.total - 320 * 64), rel=1e-12)


def test_a_head_of_its_own_has_a_share_as_well():
    """As the paper counts, 2·V·H."""
    config = load_config(RECIPES / "pangu_pi_1b_pro.yaml")
    assert embedding_share(config, 48_000) == 2 * 48_000 * 1792 / count_parameters(config).total


def test_a_checkpoint_is_remapped_and_computes_the_same(trained, tmp_path, tiny_overrides):
    out = tmp_path / "small"
    assert call("--checkpoint", trained, "--size", 370, "--out", out, "--verify") == 0
    before, after = CheckpointReader(trained), CheckpointReader(out)
    old, new = (Tokenizer.load(reader.folder / "tokenizer" / "main.model") for reader in (before, after))
    assert new.digest == Tokenizer.load(out / "tokenizer.model").digest
    assert after.config().model.vocab_size == new.vocab_size == 370
    id_of = {old.piece(index): index for index in range(old.vocab_size)}
    kept = np.array([id_of[new.piece(index)] for index in range(370)])

    # rows of the kept pieces, Adam's moments as well; every other tensor bit for bit
    (old_name,), (new_name,) = (
        [name for name in reader.files if name.startswith("dense_")] for reader in (before, after)
    )
    expected, found = before.tensors(old_name), after.tensors(new_name)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        has_rows_of_tokens = name.endswith(("word_embedding", "head.weight"))
        np.testing.assert_array_equal(found[name], values[kept] if has_rows_of_tokens else values)
    assert "adam_m.word_embedding" in found
    for name in (name for name in before.files if name.startswith("experts/")):
        for tensor, values in before.tensors(name).items():
            np.testing.assert_array_equal(after.tensors(name)[tensor], values)

    # text that needs only pieces that stay
    counts = PieceCounts.load(out / "counts.safetensors")
    words = [
        word
        for word in "open close the window table red blue file row and then save".split()
        if set(old.encode(f" {word}")) <= set(kept.tolist())
    ]
    text = "".join(f" {word}" for word in words * 20)
    ids, new_ids = old.encode(text), new.encode(text)
    assert counts.train_V.sum() > 0
    assert len(words) > 3
    assert kept[new_ids].tolist() == ids
    logits = [logits_of(folder, tokens) for folder, tokens in ((trained, ids), (out, new_ids))]
    assert logits[0].shape[-1] == 420
    np.testing.assert_allclose(logits[1], logits[0][:, kept], atol=1e-5)


def logits_of(folder, tokens):
    """float32 [16, V] of the first 16 tokens of a text of the domain en."""
    from types import SimpleNamespace

    batch = SimpleNamespace(
        tokens_BS=np.array([tokens[:16]], np.int32),
        positions_BS=np.arange(16, dtype=np.int32)[None],
        slot_of_sample_B=np.zeros(1, np.int32),
    )
    return Forward(folder)(batch, "en")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "10"], "10 pieces is too small"),
        (["--size", "420"], "has 420; ask for fewer"),
        (["--size", "360", "--sizes", "340,5000"], "5,000 pieces is asked for"),
        (["--size", "360", "--sizes", "many"], "--sizes is 'many'"),
        (["--size", "360", "--corpus", "nowhere/*.jsonl"], "--corpus pattern 'nowhere/*.jsonl' matches no file"),
        (["--size", "360", "--counts", "."], "--counts . is a folder; give the name of a file"),
        (["--size", "360", "--fields", "body"], "no text in the fields body"),
        (["--size", "360", "--model.depth", "3"], "model.depth"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(model_file, tiny_corpus, tmp_path, capsys, words, message):
    out = tmp_path / "out"
    assert call("--tokenizer", model_file, "--corpus", tiny_corpus, "--out", out, *words) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_file_in_the_place_of_the_folder_is_named_before_anything_is_counted(
    model_file, tiny_corpus, tmp_path, capsys
):
    (tmp_path / "out").touch()
    assert call("--tokenizer", model_file, "--corpus", tiny_corpus, "--out", tmp_path / "out", "--size", 360) == 1
    assert f"--out {tmp_path / 'out'} is a file; give the name of a folder" in capsys.readouterr().err


def test_nothing_that_is_there_is_lost(model_file, trained, tiny_corpus, tmp_path, capsys):
    out = tmp_path / "out"
    words = ("--corpus", tiny_corpus, "--size", 360)
    assert call("--tokenizer", model_file, "--out", out, *words) == 0
    assert call("--tokenizer", out / "tokenizer.model", "--out", out, "--corpus", tiny_corpus, "--size", 350) == 1
    assert "would be replaced" in capsys.readouterr().err
    assert call("--checkpoint", trained, "--out", trained, *words) == 1
    assert "already has a checkpoint" in capsys.readouterr().err


def test_help_and_configuration_go_with_actions(tiny_overrides, model_file, tmp_path, capsys):
    for words in (["tiny", "--help"], ["tiny", "tokenizer", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            main(words)
        assert "tokenizer" in capsys.readouterr().out
    path = tmp_path / "run.yaml"
    path.write_text(f"model: {{hidden_size: 32}}\ndata: {{corpus: {tiny_overrides['data.corpus']}}}\n")
    common = ("--tokenizer", model_file, "--size", "360", "--out", str(tmp_path / "out"))
    shares = []
    for words in (("tokenizer", *common, "--config", str(path)), ("--config", str(path), "tokenizer", *common)):
        assert main(["tiny", *words]) == 0
        shares.append(json.loads((tmp_path / "out" / "report.json").read_text())["sizes"][0]["embedding_share"])
    assert shares[0] == shares[1] == embedding_share(load_config(path, {}), 360)
