"""Sub-models: their logits are the full model's, whatever is left out."""

import errno
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from mindpangu.checkpoint import CheckpointReader
from mindpangu.cli.main import main
from mindpangu.data import HELDOUT, TRAIN
from mindpangu.domains import build_domains
from mindpangu.errors import CheckpointError
from mindpangu.tokenizer import Tokenizer
from tests.lifecycle.conftest import forward_of_export


def extract(*words, out):
    assert main(["extract", *map(str, words), "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("names", [("zh",), ("code", "zh"), ("bilingual", "zh", "en", "code")])
def test_a_sub_model_computes_the_same_bits(trained, tmp_path, logits, full_logits, names):
    before = CheckpointReader(trained)

    out = extract("--domains", ",".join(names), "--checkpoint", trained, out=tmp_path / "sub")

    after = CheckpointReader(out)
    assert {domain.name for domain in build_domains(after.config())} == set(names)
    for name, values in zip(names, logits(out, names), strict=True):
        np.testing.assert_array_equal(values, full_logits[name])
    for name in after.files:
        if name not in ("config.yaml", "state.json"):
            assert after.files[name] == before.files[name]
    experts = {name.split(".")[1] for name in after.files if name.startswith("experts/")}
    assert experts == set(names)


def test_a_sub_model_without_moments_computes_the_same_bits(trained, tmp_path, logits, full_logits):
    words = ["--domains", "en", "--checkpoint", trained]
    whole = CheckpointReader(extract(*words, out=tmp_path / "whole"))

    light = CheckpointReader(extract(*words, "--weights-only", out=tmp_path / "light"))

    np.testing.assert_array_equal(logits(light.folder, ["en"])[0], full_logits["en"])
    for name, tensors in ((name, light.tensors(name)) for name in light.files if name.startswith(("dense", "exp"))):
        assert not [tensor for tensor in tensors if tensor.startswith("adam_")]
        for tensor, values in tensors.items():
            np.testing.assert_array_equal(values, whole.tensors(name)[tensor])


def test_a_smaller_vocabulary_gives_the_kept_tokens_their_logits(trained, shards, tmp_path, logits, full_logits):
    words = ["--domains", "zh", "--checkpoint", trained, "--vocabulary-of", trained]

    after = CheckpointReader(extract(*words, out=tmp_path / "small"))

    old = Tokenizer.load(CheckpointReader(trained).folder / "tokenizer" / "main.model")
    new = Tokenizer.load(after.folder / "tokenizer" / "main.model")
    assert new.vocab_size < old.vocab_size == 420
    pieces = {new.piece(index): index for index in range(new.vocab_size)}
    kept = np.array([index for index in range(420) if old.piece(index) in pieces])
    new_ids = np.full(420, -1, np.int32)
    new_ids[kept] = np.arange(len(kept))
    actual = logits(after.folder, ["zh"], new_ids)[0]
    np.testing.assert_allclose(actual, full_logits["zh"][:, kept], atol=1e-5)
    for split in (TRAIN, HELDOUT):
        tokens = np.asarray(shards.tokens("zh", split))
        assert (new_ids[tokens] >= 0).all()
        text = old.decode(tokens.tolist())
        assert [new_ids[index] for index in old.encode(text)] == new.encode(text)
    assert after.config().model.vocab_size == new.vocab_size


def test_an_export_by_itself_gives_the_logits(trained, shards, tmp_path, full_logits):
    out = extract("--domains", "code", "--checkpoint", trained, "--export", out=tmp_path / "export")

    settings = json.loads((out / "config.json").read_text())
    tokens_BS = np.asarray(shards.tokens("code", HELDOUT))[: 4 * 16].reshape(4, 16).astype(np.int64)
    # windows as heldout_batches cuts them: each begins with the token that the one before predicts last
    expected = full_logits["code"].reshape(4, 16, -1)
    windows = np.stack([np.asarray(shards.tokens("code", HELDOUT))[i * 16 : i * 16 + 16] for i in range(4)])
    np.testing.assert_array_equal(windows, tokens_BS)
    actual = forward_of_export(load_file(out / "model.safetensors"), settings, windows.astype(np.int64))
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert settings["control_tokens"] == ["<python>", "<java>"]
    assert Tokenizer.load(out / "tokenizer.model").vocab_size == settings["vocab_size"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--domains", "fr"], "unknown domain 'fr'"),
        (["--domains", ","], "names none"),
        (["--domains", "zh,en", "--export"], "an export holds exactly one domain"),
        (["--domains", "zh", "--vocabulary-of", "nowhere"], "there are no token shards"),
    ],
)
def test_mistakes_are_named(trained, tmp_path, capsys, words, message):
    assert main(["extract", *words, "--checkpoint", str(trained), "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("[!.]*"))


def test_a_disk_without_links_gets_copies_that_are_checked(trained, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    source = tmp_path / "source" / "iteration_00000006"
    shutil.copytree(CheckpointReader(trained).folder, source)

    after = CheckpointReader(extract("--domains", "zh", "--checkpoint", source, out=tmp_path / "copies"))

    for name in after.files:
        after.read(name)

    path = source / "experts" / "rre_01.zh.002.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    words = ["--domains", "zh", "--verify", "--checkpoint", str(source), "--out", str(tmp_path / "no")]
    assert main(["extract", *words]) == 1
    assert "rre_01.zh.002.safetensors was altered" in capsys.readouterr().err
    assert not list((tmp_path / "no").glob("*"))


def test_an_export_of_an_altered_expert_leaves_nothing(trained, tmp_path, capsys):
    source = tmp_path / "source" / "iteration_00000006"
    shutil.copytree(CheckpointReader(trained).folder, source)
    path = source / "experts" / "rre_01.zh.002.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    words = ["--domains", "zh", "--export", "--checkpoint", str(source), "--out", str(tmp_path / "out")]

    assert main(["extract", *words]) == 1

    assert "rre_01.zh.002.safetensors was altered" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_export_that_fails_leaves_nothing_in_the_way_of_the_next(trained, tmp_path, monkeypatch, capsys):
    words = ["extract", "--domains", "zh", "--export", "--checkpoint", str(trained), "--out", str(tmp_path / "export")]

    def full(blueprint):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("mindpangu.lifecycle.export._config", full)  # it makes the last file
        assert main(words) == 1

    assert "export cannot be written: No space left on device; free disk space" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main(words) == 0
    assert main(words) == 1
    assert "export exists and is not empty; choose another --out" in capsys.readouterr().err


def test_an_altered_configuration_is_refused_before_it_is_parsed(trained, tmp_path, capsys):
    source = tmp_path / "iteration_00000006"
    shutil.copytree(CheckpointReader(trained).folder, source)
    path = source / "config.yaml"
    path.write_bytes(b"{" + path.read_bytes()[1:])

    assert main(["extract", "--domains", "zh", "--checkpoint", str(source), "--out", str(tmp_path / "out")]) == 1
    assert "config.yaml was altered: its hash is not the one in the manifest" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"config.yaml was altered"):
        CheckpointReader(source).config()
