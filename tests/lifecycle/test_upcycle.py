"""Upcycling: the sparse child computes what its dense parent does; its vocabulary may differ."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from mindpangu.checkpoint import CheckpointReader
from mindpangu.checkpoint.dense import DenseFiles
from mindpangu.checkpoint.vocabulary import VocabularyMap
from mindpangu.cli.main import main
from mindpangu.config import load_config
from mindpangu.errors import CheckpointError
from mindpangu.lifecycle import upcycle as sparse
from mindpangu.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def child_words(tiny_overrides, trained):
    """Options of the child's configuration, which is the sparse run's."""
    run = {"training.output_dir": str(trained.parent), "training.run_name": trained.name}
    return [word for key, value in (tiny_overrides | run).items() for word in (f"--{key}", value)]


def upcycle(child_words, parent, out, *words):
    return main(["upcycle", "--parent", str(parent), "--out", str(out), *child_words, *map(str, words)])


@pytest.fixture(scope="module")
def dense_logits(dense, logits):
    names = ("bilingual", "zh", "en", "code")
    return dict(zip(names, logits(dense, names), strict=True))


def test_the_child_computes_what_its_parent_does(child_words, dense, tmp_path, logits, dense_logits, capsys):
    assert upcycle(child_words, dense, tmp_path / "child") == 0

    assert "420 tokens have the parent's row, 0 the mean of several, 0 a random one" in capsys.readouterr().out
    for name, values in zip(dense_logits, logits(tmp_path / "child", list(dense_logits)), strict=True):
        np.testing.assert_allclose(values, dense_logits[name], atol=1e-5)


def test_noise_makes_experts_differ_and_a_shorter_sequence_keeps_its_positions(child_words, dense, tmp_path):
    assert upcycle(child_words, dense, tmp_path / "child", "--noise", 0.01, "--model.seq_length", 8) == 0

    child = CheckpointReader(tmp_path / "child")
    parent = DenseFiles(CheckpointReader(dense))
    first, second = (child.tensors(f"experts/rre_00.zh.{index:03d}.safetensors")["up"] for index in range(2))
    up = parent.read("blocks.1.ffn.up.weight")
    for expert in (first, second):
        assert np.std(expert - up) == pytest.approx(0.01 * up.std(), rel=1e-3)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(DenseFiles(child).read("query_embedding"), parent.read("query_embedding")[:8])


def test_rows_follow_the_text_of_the_tokens(tiny_corpus, trained, dense, tiny_overrides, tmp_path, capsys):
    """A child with another tokenizer: shared pieces keep their rows, new ones are means of the parent's."""
    texts = tiny_corpus.read_text("utf-8").splitlines()[:150]
    run = tmp_path / "other"
    shutil.copytree(trained.parent / trained.name / "routing", run / "routing")
    new = train_tokenizer(texts, 400, ["<eot>", "<cn>", "<en>", "<python>", "<java>"], run / "tokenizer" / "main.model")
    changes = {"training.output_dir": str(tmp_path), "training.run_name": "other"}
    words = [word for key, value in (tiny_overrides | changes).items() for word in (f"--{key}", value)]

    assert upcycle(words, dense, tmp_path / "child") == 0

    parent = CheckpointReader(dense)
    old = Tokenizer.load(parent.folder / "tokenizer" / "main.model")
    old_VH = DenseFiles(parent).read("word_embedding")
    new_VH = DenseFiles(CheckpointReader(tmp_path / "child")).read("word_embedding")
    assert new_VH.shape == (420, 16)
    id_of = {old.piece(index): index for index in range(old.vocab_size)}
    shared = 0
    composed = 0
    for index in range(new.vocab_size):
        piece = new.piece(index)
        if piece in id_of:
            np.testing.assert_array_equal(new_VH[index], old_VH[id_of[piece]])
            shared += 1
        elif new.is_text(index):
            ids = old.encode(piece.replace("\u2581", " "))
            np.testing.assert_allclose(new_VH[index], old_VH[ids].mean(0), atol=1e-6)
            shared += len(ids) == 1
            composed += len(ids) > 1
    assert shared > 300
    assert composed > 1
    assert f"{shared:,} tokens have the parent's row, {composed:,} the mean" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.hidden_size", "32"], "model.hidden_size is 16 there, 32 here"),
        (["--model.seq_length", "32"], "model.seq_length is 16 there, 32 here"),
        (["--model.layernorm_epsilon", "0.1"], "model.layernorm_epsilon is 1e-05 there, 0.1 here"),
        (["--data.eod_reset", "true"], "data.eod_reset is False there, True here"),
        (["--model.rre_layers", "0"], "give it RRE layers"),
        (["--model.rre_layers", "1"], "but the routing table is one of 2 layers"),
        (["--domains.experts_per_domain", "4"], "has 4 experts in the configuration, but 3 in its routing table"),
        (["--model.vocab_size", "300"], "has 420 pieces, but the embedding has 300 rows"),
        (["--training.run_name", "nowhere", "--routing.seed", "0"], "no routing table"),
    ],
)
def test_other_shapes_are_refused(child_words, dense, tmp_path, capsys, words, message):
    assert upcycle(child_words, dense, tmp_path / "child", *words) == 1

    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("child/*"))


def test_rope_theta_must_be_the_parents_if_positions_are_rotary():
    def refusal(position):
        parent, child = (
            load_config(None, {"model.position": position, "model.rre_layers": layers, "model.rope_theta": theta})
            for layers, theta in (("0", "1e4"), ("2", "5e5"))
        )
        reader = SimpleNamespace(folder="parent", config=lambda: parent)
        two_tokenizers = {"a": None, "b": None}
        dense = SimpleNamespace(
            contents={}, config=parent, dense=SimpleNamespace(reader=reader), tokenizers=two_tokenizers
        )
        with pytest.raises(CheckpointError) as refused:
            sparse.upcycle(dense, SimpleNamespace(config=child, tokenizers={}, table=SimpleNamespace()))
        return str(refused.value)

    assert "model.rope_theta is 10000.0 there, 500000.0 here" in refusal("rope")
    assert "only a model with one can be upcycled" in refusal("learned")  # the next requirement


def test_a_sparse_parent_is_refused(child_words, trained, tmp_path, capsys):
    assert upcycle(child_words, trained, tmp_path / "child") == 1

    assert "is already sparse" in capsys.readouterr().err


def test_new_rows_may_be_random(dense):
    tokenizer = Tokenizer.load(CheckpointReader(dense).folder / "tokenizer" / "main.model")
    same = VocabularyMap.between(tokenizer, tokenizer)
    assert same.sources == tuple((index,) for index in range(tokenizer.vocab_size))
    drawn_VH = np.arange(840, dtype=np.float32).reshape(420, 2)
    mostly_new = VocabularyMap(((),) * 400 + ((0, 2),))

    rows = mostly_new.rows(np.eye(4, 2, dtype=np.float32), 420, drawn_VH)

    np.testing.assert_array_equal(rows[:400], drawn_VH[:400])
    np.testing.assert_array_equal(rows[400], [0.5, 0])
    np.testing.assert_array_equal(rows[401:], drawn_VH[401:])
