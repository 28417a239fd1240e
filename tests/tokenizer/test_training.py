"""Training a tokenizer: reproducible bytes, the layout of its ids, and helpful errors."""

import re

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
        (TEXTS, {"vocab_size": 9000}, r"vocab_size 9000 on this text: it yields (\d+) pieces. Set .* to \1 or less"),
        (TEXTS, {"vocab_size": 300}, r"vocab_size 300 on this text: its characters .* need (\d+) .* to \1 or more"),
        (TEXTS, {"vocab_size": 1 << 40}, "vocab_size 1099511627776 on this text: .+"),
        ([], {}, "no text to train"),
        (["", ""], {}, "no text to train"),
        (["\n\n"], {}, "all of it is blank lines"),
        (["\x00"], {}, "control characters"),
        (["▅▅"], {}, "U\\+2585"),
        (["<eot>"], {}, "no text to train"),
        ([*TEXTS, "a\ud800b"], {}, "lone surrogate U\\+D800"),
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


def test_the_size_that_a_message_asks_for_works(tmp_path):
    for size in (300, 9000):
        with pytest.raises(TokenizerError) as refused:
            train(tmp_path / "m", vocab_size=size)
        (wanted,) = re.findall(r"Set model.vocab_size to (\d+)", str(refused.value))

        assert train(tmp_path / "m", vocab_size=int(wanted)).vocab_size == int(wanted)


def letters_learned(tmp_path, lines, letters, vocab_size=400):
    """Trains on the lines and much other text, and returns the letters that got pieces."""
    tokenizer = train(tmp_path / "m", [*TEXTS, *lines], vocab_size)
    return [letter for letter in letters if tokenizer.is_text(tokenizer.encode(letter)[-1])]


def test_no_character_makes_sentencepiece_skip_its_line(tmp_path, monkeypatch):
    """The kind of U+2585: every character of the first 12,000, and every special token, with a letter of its own."""
    monkeypatch.setitem(training._SETTINGS, "character_coverage", 1.0)
    monkeypatch.setitem(training._SETTINGS, "hard_vocab_limit", False)
    others = [*map(chr, range(0x2FE0)), "<unk>", "<pad>", "<eot>", "<s>", "<reserved_0>", "<0x41>", "⁇", "\ufffd"]
    letters = [chr(0x20000 + index) for index in range(len(others))]
    lines = [f"{other} {letter} {other}{letter}\n" for other, letter in zip(others, letters, strict=True)]

    learned = letters_learned(tmp_path, lines, letters, 30_000)

    assert set(letters) - set(learned) == set()


@pytest.mark.parametrize("line", ["▅가▅▅나\n", "가 ▅ 나", "▅" * 9 + "가나"])
def test_text_around_a_reserved_character_is_learned_and_the_character_is_counted(tmp_path, capsys, line):
    learned = letters_learned(tmp_path, [line] * 40, ["가", "나"])

    assert learned == ["가", "나"]
    assert f"tokenizer: left out {40 * line.count('▅')} × ▅ (U+2585)" in capsys.readouterr().out


def test_real_text_with_reserved_characters_is_learned_like_the_text_without(sample_texts, tmp_path, capsys):
    plain = train(tmp_path / "plain", sample_texts[:8], 700)
    marked = train(tmp_path / "marked", [text.replace("\n", "▅\n") for text in sample_texts[:8]], 700)

    pieces = [{each.piece(index) for index in range(each.vocab_size)} for each in (plain, marked)]

    assert len(pieces[0] & pieces[1]) > 0.95 * len(pieces[0])
    assert "U+2585" in capsys.readouterr().out
    for text in ("a▅b", "\x00x\x1f", "\x85", "⁇", *sample_texts[:5]):
        assert marked.decode(marked.encode(text)) == text


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
