"""Appending control tokens to a model that has none."""

import io

import pytest
import sentencepiece

from mindpangu.cli.main import main
from mindpangu.errors import TokenizerError
from mindpangu.tokenizer import Tokenizer, reserved_control_tokens
from mindpangu.tokenizer.extend import extend

WORDS = "the window opens and closes slowly 打开 关闭 窗口 表格".split()


def trained(**settings):
    lines = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 9),
        model_writer=model,
        vocab_size=400,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **settings,
    )
    return model.getvalue()


def test_extending_keeps_ids_and_segmentation(tmp_path):
    data = trained(model_type="bpe")
    old = sentencepiece.SentencePieceProcessor(model_proto=data)
    text = "the slowly 窗口 <eot> opens"

    new = extend(data, ["<eot>", "<cn>"], "small")

    size = old.vocab_size()
    assert new.encode(text) == old.encode(text)
    assert (new.pad_id, new.eot_id, new.control_id("<cn>")) == (size, size + 1, size + 2)
    assert new.vocab_size == size + 3 + len(reserved_control_tokens())
    assert new.decode([new.eot_id, *old.encode("the window"), new.pad_id]) == "the window"
    # extending again changes nothing
    assert extend(new.model_bytes, ["<eot>", "<cn>"], "again").model_bytes == new.model_bytes


def test_the_verb_writes_the_extended_model(tmp_path, capsys):
    source = tmp_path / "small.model"
    source.write_bytes(trained(model_type="unigram"))
    out = tmp_path / "new" / "extended.model"

    assert main(["tokenizer", "extend", "--model", str(source), "--out", str(out)]) == 0

    assert Tokenizer.load(out).control_id("<python>") > 0


def test_the_verb_says_what_the_model_loses(tmp_path, capsys):
    source = tmp_path / "small.model"
    settings = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
    lossless = trained(model_type="unigram", **settings)
    losses = {
        "": {},
        "replaces characters with others (nmt_nfkc)": {"normalization_rule_name": "nmt_nfkc"},
        "removes repeated blanks": {"remove_extra_whitespaces": True},
        "become <unk>": {"byte_fallback": False},
    }

    for words, change in losses.items():
        source.write_bytes(trained(model_type="unigram", **settings | change) if change else lossless)
        assert main(["tokenizer", "extend", "--model", str(source), "--out", str(tmp_path / "new.model")]) == 0
        out = capsys.readouterr().out

        assert words in out
        assert ("does not preserve all text" in out) == bool(words)


def test_the_verb_refuses_a_missing_option_or_file(tmp_path, capsys):
    source = tmp_path / "small.model"
    source.write_bytes(trained(model_type="unigram"))
    out = tmp_path / "extended.model"

    assert main(["tokenizer", "extend", "--model", str(source)]) == 1
    assert main(["tokenizer", "extend", "--model", str(tmp_path / "absent"), "--out", str(out)]) == 1
    assert "No such file" in capsys.readouterr().err


def test_a_model_that_cannot_be_extended_is_refused():
    with pytest.raises(TokenizerError, match="'<pad>' as ordinary text"):
        extend(trained(user_defined_symbols=["<pad>"]), ["<eot>"], "small")

    with pytest.raises(TokenizerError, match="not a sentencepiece model"):
        extend(b"abc", ["<eot>"], "small")

    with pytest.raises(TokenizerError, match="lack <eot>"):
        extend(trained(), ["<cn>"], "small")
