"""Encoding and decoding with a trained sentencepiece model, and refusing models that cannot be used."""

import io
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu import domains
from mindpangu.config import Config, DataConfig
from mindpangu.data import HELDOUT, CorpusReader, split_corpus
from mindpangu.domains import PRESETS, build_domains, control_tokens_of
from mindpangu.errors import TokenizerError
from mindpangu.tokenizer import END_OF_TEXT, PADDING, RESERVED_CONTROL_TOKENS, Tokenizer

CORPUS = Path(__file__).resolve().parents[2] / "recipes" / "corpus"

CONTROL_TOKENS = control_tokens_of(PRESETS["sigma_4"])
LITERALS = "<eot> <pad> <unk> <s></s> <cn><python> <reserved_3> <0x41><0x0A>"
PROBES = {
    "newlines": "a\nb\n\n\nc\n",
    "leading newline": "\n\na",
    "tabs": "a\tb\n\tc\t\n",
    "indentation": "def f(x):\n    if x:\n        return 1\n\n\n    # end\n",
    "blanks": "  lead  two   three trail  ",
    "full width": "你好，世界！（测试）：“引号”、《书》；ＡＢＣ１２３\u3000全角空格。",
    "emoji": "😀👩‍👩‍👧 ❤️🇨🇳",
    "rare characters": "𠮷 é e\u0301 ﬁ ① ㎏ ½ \u00a0nbsp \ufeff \u200b \u2028 \x85 \ufffd",
    "control characters": "a\0b\x0b\x0c\x1b[0m\r\n\r",
    "control literals": LITERALS,
    "one blank": " ",
    "empty": "",
}


def test_every_held_out_document_of_the_corpus_round_trips(tokenizer):
    config = Config(data=DataConfig(corpus=[str(CORPUS / "*.jsonl")]))
    reader = CorpusReader(config, build_domains(config))
    split = split_corpus(reader)
    texts_by_domain = [[] for _ in reader.domains]
    for record in reader:
        if split.side_of(record) == HELDOUT:
            texts_by_domain[record.domain_id] += [text for _, text in record.parts]
    assert reader.report.num_bad == 0
    assert all(texts_by_domain)

    for texts in texts_by_domain:
        for text, ids in zip(texts, tokenizer.encode_batch(texts, threads=2), strict=True):
            assert tokenizer.decode(ids) == text
            assert tokenizer.unk_id not in ids


@pytest.mark.parametrize("text", PROBES.values(), ids=PROBES)
def test_difficult_texts_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=60))
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sentencepieces_stand_in_for_a_blank_decodes_to_a_blank(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a▁b")) == "a b"


def test_text_never_becomes_a_control_token(tokenizer):
    reserved = [f"<reserved_{index}>" for index in range(RESERVED_CONTROL_TOKENS)]

    control_ids = [tokenizer.control_id(token) for token in [*CONTROL_TOKENS, *reserved, "<pad>"]]
    text = "".join([*CONTROL_TOKENS, *reserved, "<pad><unk>"])

    assert len(set(control_ids)) == len(CONTROL_TOKENS) + 64 + 1
    assert not set(tokenizer.encode(text)) & {*control_ids, tokenizer.unk_id}
    assert tokenizer.decode(control_ids) == ""


def test_control_tokens_and_padding_decode_to_nothing(tokenizer):
    ids = [tokenizer.control_id("<cn>"), *tokenizer.encode("你好"), tokenizer.pad_id, *tokenizer.encode(" b")]
    assert tokenizer.decode([*ids, tokenizer.eot_id, tokenizer.pad_id]) == "你好 b"


def test_invalid_utf8_and_unknown_decode_to_the_replacement_character(tokenizer):
    byte = next(index for index in range(tokenizer.vocab_size) if tokenizer.piece(index) == "<0xE4>")
    assert tokenizer.decode([byte]) == "\ufffd"
    assert tokenizer.decode([tokenizer.unk_id]) == "\ufffd"


def test_a_batch_equals_its_texts_alone_on_any_number_of_threads(tokenizer):
    texts = list(PROBES.values())
    alone = [tokenizer.encode(text) for text in texts]

    assert tokenizer.encode_batch(texts, threads=1) == tokenizer.encode_batch(texts, threads=4) == alone
    assert tokenizer.encode_batch([], threads=2) == []


def test_a_lone_surrogate_is_named(tokenizer):
    with pytest.raises(TokenizerError, match=r"lone surrogate U\+D800 at character 2"):
        tokenizer.encode_batch(["fine", "ab\ud800"], threads=2)


@pytest.mark.parametrize("token", ["", "<\udcb2>", "<fr>", "\0", "a"])
def test_a_word_that_is_not_a_control_token_is_named(tokenizer, token):
    with pytest.raises(TokenizerError, match="has no control token"):
        tokenizer.control_id(token)


@pytest.mark.parametrize("offset", [-1, 0])
def test_ids_outside_the_vocabulary_are_named(tokenizer, offset):
    index = -1 if offset else tokenizer.vocab_size
    for call in (lambda: tokenizer.decode([5, index]), lambda: tokenizer.piece(index)):
        with pytest.raises(TokenizerError, match=rf"token id {index} is outside the vocabulary \[0, 2000\)"):
            call()


@pytest.mark.parametrize("token", ["<de>", "\n", "<unk>", "<0x41>", ""])
def test_anything_but_a_control_token_is_refused(tokenizer, token):
    with pytest.raises(TokenizerError, match=f"no control token {token!r}".replace("\\", r"\\")):
        tokenizer.control_id(token)


def test_loading_gives_the_same_tokenizer(tokenizer, tmp_path):
    path = tmp_path / "copy.model"
    path.write_bytes(tokenizer.model_bytes)

    loaded = Tokenizer.load(path)

    assert (loaded.digest, loaded.vocab_size, loaded.eot_id) == (tokenizer.digest, 2000, tokenizer.eot_id)
    assert loaded.encode(PROBES["indentation"]) == tokenizer.encode(PROBES["indentation"])


@pytest.mark.parametrize("kept", [0, 10, 1000, -1000])
def test_a_damaged_file_is_refused(tokenizer, tmp_path, kept):
    path = tmp_path / "damaged.model"
    path.write_bytes(tokenizer.model_bytes[:kept])

    with pytest.raises(TokenizerError, match=r"damaged.model is damaged or not a sentencepiece model"):
        Tokenizer.load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match=r"missing.model cannot be read: No such file"):
        Tokenizer.load(tmp_path / "missing.model")


@pytest.mark.parametrize(
    ("symbols", "message"),
    [
        (
            {"pad_id": -1, "control_symbols": ["<eot>"]},
            r"no padding token; `mindpangu tokenizer extend --model .*foreign.model --out FILE`",
        ),
        ({"pad_id": 1}, "no control token '<eot>'"),
        # Like PanGu-α's own model: raw text could end a document.
        ({"pad_id": 1, "user_defined_symbols": ["<eot>"]}, "no control token '<eot>'"),
    ],
)
def test_a_foreign_model_without_the_needed_tokens_is_refused(tmp_path, symbols, message):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words of text"] * 9),
        model_writer=model,
        vocab_size=24,
        hard_vocab_limit=False,
        bos_id=-1,
        eos_id=-1,
        unk_id=0,
        minloglevel=2,
        **symbols,
    )
    path = tmp_path / "foreign.model"
    path.write_bytes(model.getvalue())

    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(path)


def test_both_rooms_spell_end_of_text_and_padding_alike():
    assert (END_OF_TEXT, PADDING) == (domains.END_OF_TEXT, domains.PADDING)
