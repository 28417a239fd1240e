"""PanGu-α's tokenizer, with its published model."""

import hashlib
import json
import sys
from pathlib import Path

import jieba
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu.errors import TokenizerError
from mindpangu.tokenizer import Tokenizer, pangu_alpha
from mindpangu.tokenizer.compact import compact

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
MODEL = RECIPES / "tokenizer" / "pangu_alpha_40k.model"
CONTROL = {"<sep>": 5, "<pad>": 6, "<mask>": 7, "<eod>": 8, "<eot>": 9}

ALPHA = Tokenizer.load(MODEL)


@pytest.fixture
def alpha():
    return ALPHA


def test_the_model_is_recognised_by_its_pieces(alpha, tokenizer):
    assert (alpha.kind, tokenizer.kind) == ("pangu_alpha", "sentencepiece")
    assert (alpha.vocab_size, alpha.unk_id, alpha.pad_id, alpha.eot_id) == (40000, 0, 6, 9)
    assert [alpha.piece(index) for index in range(3, 13)] == ["▃", "▂", *CONTROL, "▁,", "▁的", "▁。"]
    assert {token: alpha.control_id(token) for token in CONTROL} == CONTROL
    for token in ("<cn>", "<s>", "▂", "的", ""):
        with pytest.raises(TokenizerError, match=r"has no control token .* goes with domains.preset pangu_alpha"):
            alpha.control_id(token)
    # the digest covers PanGu-α's kind; for other models it is that of the file alone
    assert alpha.digest != hashlib.blake2b(alpha.model_bytes, digest_size=16).hexdigest()
    assert tokenizer.digest == hashlib.blake2b(tokenizer.model_bytes, digest_size=16).hexdigest()


def test_the_published_file_is_unchanged(alpha):
    digest = "18857e86783e50cfcaa0bc3c043fb4e9b5f240b885d2870ea593ee69b44f7a3a"
    assert hashlib.sha256(alpha.model_bytes).hexdigest() == digest
    assert digest in (RECIPES / "tokenizer" / "LICENSES.md").read_text(encoding="utf-8")


def test_the_published_test_vector(alpha):
    assert alpha.encode("你好，今天天气不错。") == [5772, 10, 465, 235, 464, 1123, 12]


def test_ids_are_those_of_the_published_recipe(alpha):
    processor = sentencepiece.SentencePieceProcessor(model_proto=alpha.model_bytes)

    texts = []
    for name in ("zh.libreoffice-help.jsonl", "en.sqlite-docs.jsonl", "code.cpython-stdlib.jsonl"):
        with open(RECIPES / "corpus" / name, encoding="utf-8") as file:
            texts += [json.loads(next(file))["text"][:2000] for _ in range(3)]

    for text, ids in zip(texts, alpha.encode_batch(texts, threads=2), strict=True):
        words = [word.replace(" ", "▂").replace("\n", "▃") for word in jieba.cut(text, cut_all=False)]
        assert ids == processor.encode(" ".join(words)) == alpha.encode(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "今天天气不错。\n明天呢?",
        "hello world  two blanks\n\n  and lines\n",
        "def f(x):\n    return x + 1\n",
        "<eot> and <pad><eod>",
        " ",
    ],
)
def test_texts_that_round_trip(alpha, text):
    assert alpha.decode(alpha.encode(text)) == text


@pytest.mark.parametrize(
    ("text", "back"),
    [
        ("你好，Ａ１", "你好,A1"),  # normalized
        ("a\tb\r\nc\u3000d", "ab\ncd"),  # whitespace other than blank and newline
        ("▁ ▂▃", "  \n"),  # stand-ins for blank and newline
        ("x😀y", "x⁇y"),  # outside the vocabulary
    ],
)
def test_known_losses(alpha, text, back):
    assert alpha.decode(alpha.encode(text)) == back


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [*CONTROL, "<", ">", "eot", "＜", "﹥", "\u200b", "\u00ad", "▁", "<s>", "</s>", "e", "a", " ", "\n"]
        )
        | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        max_size=12,
    ).map("".join)
)
def test_no_text_becomes_a_control_token(text):
    assert set(ALPHA.encode(text)).isdisjoint({1, 2, *CONTROL.values()})


def test_control_tokens_decode_to_nothing(alpha):
    assert alpha.decode([9, 5772, 6, 1, 10, 2, 8]) == "你好,"
    assert alpha.decode([]) == ""
    with pytest.raises(TokenizerError, match=r"token id 40000 is outside the vocabulary"):
        alpha.decode([40000])


def test_text_pieces_exclude_control_tokens_and_unknown(alpha):
    assert [index for index in range(12) if alpha.is_text(index)] == [3, 4, 10, 11]


def test_a_compacted_tokenizer_is_of_the_same_kind(alpha):
    text = "今天 天气不错\n"

    small, old_ids = compact(alpha, set(alpha.encode(text)))

    assert (small.kind, small.eot_id, small.pad_id) == ("pangu_alpha", 9, 6)
    assert small.vocab_size < 30
    assert [int(old_ids[index]) for index in small.encode(text)] == alpha.encode(text)
    assert small.decode(small.encode(text)) == text


def test_a_lone_surrogate_is_named(alpha):
    with pytest.raises(TokenizerError, match=r"lone surrogate U\+D800 at character 2"):
        alpha.encode_batch(["fine", "ab\ud800"], threads=2)


def test_jieba_is_required_only_for_encoding(alpha, monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    pangu_alpha._words.cache_clear()

    assert alpha.decode([5772]) == "你好"
    with pytest.raises(TokenizerError, match=r"needs jieba, which is not installed; pip install jieba=="):
        alpha.encode("你好")


def test_words_added_to_the_global_jieba_do_not_affect_ours(alpha):
    before = alpha.encode("今天天气不错")

    jieba.add_word("天天气", freq=10**9)

    try:
        assert "天天气" in jieba.lcut("今天天气不错")
        assert alpha.encode("今天天气不错") == before
    finally:
        jieba.del_word("天天气")
