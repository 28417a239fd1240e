"""Removing pieces from unigram and BPE tokenizers."""

import io

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

from mindpangu.tokenizer import Tokenizer
from mindpangu.tokenizer.compact import PieceDependencies, compact

WORDS = "the window opens and closes slowly 打开 关闭 窗口 表格 然后 保存 def return (x): += 42".split()


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(request):
    lines = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 9),
        model_writer=model,
        model_type=request.param,
        vocab_size=360,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=1,
        bos_id=-1,
        eos_id=-1,
        control_symbols=["<eot>"],
        user_defined_symbols=["\n"],
        minloglevel=2,
        num_threads=1,
    )
    return Tokenizer(model.getvalue(), request.param)


def text_ids(tokenizer):
    return [index for index in range(tokenizer.vocab_size) if tokenizer.is_text(index)]


@settings(max_examples=40, deadline=None)
@given(text=st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join), others=st.randoms())
def test_text_of_kept_pieces_is_segmented_as_before(tokenizer, text, others):
    ids = tokenizer.encode(text)

    smaller, old_ids = compact(tokenizer, set(ids) | set(others.sample(text_ids(tokenizer), 3)))

    assert [old_ids[index] for index in smaller.encode(text)] == ids
    assert [smaller.piece(i) for i in range(smaller.vocab_size)] == [tokenizer.piece(i) for i in old_ids]
    assert smaller.vocab_size < tokenizer.vocab_size


@settings(max_examples=40, deadline=None)
@given(text=st.text("the窗口 \nz42é", max_size=30), others=st.randoms())
def test_any_text_still_round_trips_through_bytes(tokenizer, text, others):
    removable = text_ids(tokenizer)

    smaller, _ = compact(tokenizer, set(others.sample(removable, len(removable) // 4)))

    assert smaller.decode(smaller.encode(text)) == text
    assert smaller.eot_id == smaller.control_id("<eot>")
    assert smaller.pad_id >= 0


# ---- Models with random pieces and scores, harder than any trained model ---------------------------------------------

PIECE = sentencepiece_model.ModelProto.SentencePiece
LETTERS = "abcd"


def build_tokenizer(pieces, model_type, byte_fallback=False):
    """Builds a model of (text, score, type) pieces after <unk>, <pad>, <eot>, and with byte fallback the bytes."""
    model = sentencepiece_model.ModelProto()
    model.trainer_spec.model_type = model_type
    model.trainer_spec.byte_fallback = byte_fallback
    model.trainer_spec.pad_id = 1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = model.normalizer_spec.remove_extra_whitespaces = False
    for text, kind in (("<unk>", PIECE.UNKNOWN), ("<pad>", PIECE.CONTROL), ("<eot>", PIECE.CONTROL)):
        model.pieces.add(piece=text, type=kind)
    for byte in range(256 if byte_fallback else 0):
        model.pieces.add(piece=f"<0x{byte:02X}>", type=PIECE.BYTE)
    for text, score, kind in pieces:
        model.pieces.add(piece=text, score=score, type=kind)
    return Tokenizer(model.SerializeToString(), "made by hand")


@st.composite
def random_models(draw, model_type):
    kinds = st.sampled_from([PIECE.NORMAL] * 8 + [PIECE.UNUSED, PIECE.USER_DEFINED])
    texts = draw(st.lists(st.text(LETTERS, min_size=1, max_size=4), min_size=1, max_size=25, unique=True))
    # few different scores, so that some are equal; far apart, so that unknown characters can win
    scores = st.integers(-8, 0).map(lambda score: 5.0 * score)
    return build_tokenizer([(text, draw(scores), draw(kinds)) for text in texts], model_type, draw(st.booleans()))


@pytest.mark.parametrize("model_type", ["UNIGRAM", "BPE"])
@settings(max_examples=400, deadline=None)
@given(data=st.data(), others=st.randoms(use_true_random=False))
def test_any_model_segments_text_of_kept_pieces_as_before(model_type, data, others):
    tokenizer = data.draw(random_models(sentencepiece_model.TrainerSpec.ModelType.Value(model_type)))
    texts = data.draw(st.lists(st.text(LETTERS, max_size=12), min_size=1, max_size=8))
    required = set(tokenizer.encode(texts[0]))
    removable = text_ids(tokenizer)

    kept_by_chance = set(others.sample(removable, others.randrange(len(removable) + 1)))
    smaller, old_ids = compact(tokenizer, required | kept_by_chance)

    kept = set(old_ids.tolist())
    assert required <= kept
    for text in texts:
        ids = tokenizer.encode(text)
        if set(ids) <= kept:
            assert [old_ids[index] for index in smaller.encode(text)] == ids


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_an_unknown_character_does_not_score_better_than_its_removed_piece(byte_fallback):
    """sentencepiece scores an unknown character 10 below the worst piece, so removing that piece opens new paths."""
    pieces = [("x", -50.0), ("xy", -20.0), ("z", -20.0), ("yz", -1.0), ("y", -20.0)]
    tokenizer = build_tokenizer([(text, score, PIECE.NORMAL) for text, score in pieces], 1, byte_fallback)
    ids = tokenizer.encode("xyz")
    assert [tokenizer.piece(index) for index in ids] == ["xy", "z"]

    smaller, old_ids = compact(tokenizer, {*ids, tokenizer.encode("yz")[0]})

    assert [smaller.piece(index) for index in smaller.encode("xyz")] == ["xy", "z"]
    assert smaller.vocab_size == len(old_ids) == tokenizer.vocab_size - 1


def test_a_merge_path_leads_through_unused_pieces():
    """BPE merges into pieces that are marked as unused, and splits those that remain in the end."""
    pieces = [("ab", -1.0, PIECE.UNUSED), ("abc", -2.0, PIECE.NORMAL), ("abcd", -3.0, PIECE.NORMAL)]
    tokenizer = build_tokenizer(pieces, 2)
    ids = tokenizer.encode("abcd")
    assert [tokenizer.piece(index) for index in ids] == ["abcd"]

    smaller, old_ids = compact(tokenizer, set(ids))

    assert [old_ids[index] for index in smaller.encode("abcd")] == ids


def test_the_pieces_that_a_piece_needs():
    pieces = [("a", -9.0), ("b", -9.0), ("c", -9.0), ("ab", -1.0), ("bc", -0.5), ("abc", -2.0), ("cc", -3.0)]
    ids = {text: 3 + index for index, (text, _) in enumerate(pieces)}

    for model_type, expected in ((1, {"abc"}), (2, {"abc", "bc"})):
        tokenizer = build_tokenizer([(text, score, PIECE.NORMAL) for text, score in pieces], model_type)

        dependencies = PieceDependencies(tokenizer)

        assert {tokenizer.piece(index) for index in dependencies.needs(ids["abc"])} == expected
        assert dependencies.always == ({0, 1, 2, ids["a"]} if model_type == 1 else {0, 1, 2})
