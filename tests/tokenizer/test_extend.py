"""Control tokens behind the pieces of a model that has none."""

import io

import pytest
import sentencepiece

from mindpangu.cli.main import main
from mindpangu.errors import TokenizerError
from mindpangu.tokenizer import Tokenizer, reserved_control_tokens
from mindpangu.tokenizer.extend import extend

WORDS = "the window opens and closes slowly 打开 关闭 窗口 表格".split()


def trained(**settings):
    model, lines = io.BytesIO(), [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 9), model_writer=model, vocab_size=60, hard_vocab_limit=False, minloglevel=2,
        num_threads=1, **settings,
    )  # fmt: skip
    return model.getvalue()


def test_ids_and_segmentation_stay(tmp_path):
    data = trained(model_type="bpe")
    old = sentencepiece.SentencePieceProcessor(model_proto=data)
    new = extend(data, ["<eot>", "<cn>"], "small")
    text = "the slowly 窗口 <eot> opens"
    assert new.encode(text) == old.encode(text)
    size = old.vocab_size()
    assert (new.pad_id, new.eot_id, new.control_id("<cn>")) == (size, size + 1, size + 2)
    assert new.vocab_size == size + 3 + len(reserved_control_tokens())
    assert new.decode([new.eot_id, *old.encode("the window"), new.pad_id]) == "the window"
    assert extend(new.model_bytes, ["<eot>", "<cn>"], "again").model_bytes == new.model_bytes


def test_the_verb_writes_it(tmp_path, capsys):
    source, out = tmp_path / "small.model", tmp_path / "new" / "extended.model"
    source.write_bytes(trained(model_type="unigram"))
    assert main(["tokenizer", "extend", "--model", str(source), "--out", str(out)]) == 0
    assert Tokenizer.load(out).control_id("<python>") > 0
    assert main(["tokenizer", "extend", "--model", str(source)]) == 1
    assert main(["tokenizer", "extend", "--model", str(tmp_path / "absent"), "--out", str(out)]) == 1
    assert "No such file" in capsys.readouterr().err


def test_what_cannot_be_extended_is_named():
    with pytest.raises(TokenizerError, match="'<pad>' as ordinary text"):
        extend(trained(user_defined_symbols=["<pad>"]), ["<eot>"], "small")
    with pytest.raises(TokenizerError, match="not a sentencepiece model"):
        extend(b"abc", ["<eot>"], "small")
    with pytest.raises(TokenizerError, match="lack <eot>"):
        extend(trained(), ["<cn>"], "small")
