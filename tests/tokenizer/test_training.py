"""Training a tokenizer: reproducible bytes, the layout of its ids, and helpful errors."""

import pytest

from mindpangu.errors import DataError, TokenizerError
from mindpangu.tokenizer import RESERVED_CONTROL_TOKENS, train_tokenizer, training

SYLLABLES = "ba ce di fo gu ha ke li mo nu pa re si to vu".split()
WORDS = [a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES[::5]]
TEXTS = [f"{first} and {second}\n    return {third}\n" for first, second, third in zip(*[iter(WORDS)] * 3, strict=True)]
FIRST_PIECE = 2 + 1 + RESERVED_CONTROL_TOKENS + 2 + 256  # unk, pad, <eot>, reserved, newline and tab, bytes


def train(path, texts=TEXTS, vocab_size=400, control_tokens=("<eot>",)):
    return train_tokenizer(texts, vocab_size, control_tokens, path)


def test_the_same_text_gives_the_same_bytes_in_memory_and_on_disk(sample_texts, tmp_path):
    a = train(tmp_path / "new" / "a.model", sample_texts[:10], 600)
    b = train(tmp_path / "b.model", iter(sample_texts[:10]), 600)
    other = train(tmp_path / "c.model", sample_texts[:9], 600)

    assert a.model_bytes == b.model_bytes == (tmp_path / "new" / "a.model").read_bytes()
    assert a.digest == b.digest != other.digest


def test_the_layout_of_the_ids(tmp_path):
    tokenizer = train(tmp_path / "m", control_tokens=["<eot>", "<cn>", "<en>"])

    pieces = [tokenizer.piece(index) for index in range(FIRST_PIECE + 2)]
    assert pieces[:5] == ["<unk>", "<pad>", "<eot>", "<cn>", "<en>"]
    assert pieces[5:69] == [f"<reserved_{index}>" for index in range(64)]
    assert pieces[69:71] == ["\n", "\t"]
    assert pieces[71:] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert (tokenizer.unk_id, tokenizer.pad_id, tokenizer.eot_id, tokenizer.vocab_size) == (0, 1, 2, 400)


def test_code_takes_few_tokens(tokenizer):
    assert [len(tokenizer.encode(text)) for text in ("\n", "\t", "    ", "        ", "self")] == [1] * 5
    assert len(tokenizer.encode("2024")) == 4  # digits stay apart


@pytest.mark.parametrize(
    ("texts", "arguments", "message"),
    [
        (
            TEXTS,
            {"vocab_size": 9000},
            r"model.vocab_size 9000 on this text: .*too high .* value <= \d+. Remedy: change",
        ),
        (TEXTS, {"vocab_size": 300}, r"model.vocab_size 300 on this text: .*smaller than"),
        ([], {}, "no text to train"),
        (["", ""], {}, "no text to train"),
        (TEXTS, {"control_tokens": ["<cn>"]}, "lack <eot>"),
        (TEXTS, {"control_tokens": ["<eot>", "<eot>"]}, "<eot> is already defined"),
    ],
)
def test_a_failed_training_is_explained_and_leaves_no_file(tmp_path, texts, arguments, message):
    with pytest.raises(TokenizerError, match=message):
        train(tmp_path / "m", texts, **arguments)

    assert not (tmp_path / "m").exists()


def test_an_error_raised_by_the_text_is_passed_on(tmp_path):
    def broken():
        yield from TEXTS
        raise DataError("more than data.max_bad_records")

    with pytest.raises(DataError, match="max_bad_records"):
        train(tmp_path / "m", broken())


def test_training_is_quiet(tmp_path, capfd):
    train(tmp_path / "m")
    with pytest.raises(TokenizerError):
        train(tmp_path / "m", vocab_size=9000)

    assert capfd.readouterr() == ("", "")


def test_a_line_above_sentencepieces_limit_is_cut_not_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_LONGEST_LINE", 100)
    monkeypatch.setitem(training._SETTINGS, "max_sentence_length", 400)

    tokenizer = train(tmp_path / "m", [" ".join(WORDS)])

    assert len(tokenizer.encode(WORDS[0])) < len(WORDS[0])  # it learned from the line
