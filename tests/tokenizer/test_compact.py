"""Tokenizers with fewer pieces: unigram and BPE."""

import io

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

from mindpangu.tokenizer import Tokenizer
from mindpangu.tokenizer.compact import Vocabulary, compact

WORDS = "the window opens and closes slowly 打开 关闭 窗口 表格 然后 保存 def return (x): += 42".split()


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(request):
    lines, model = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))], io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 9), model_writer=model, vocab_size=360, model_type=request.param,
        byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False,
        pad_id=1, bos_id=-1, eos_id=-1, control_symbols=["<eot>"], user_defined_symbols=["\n"],
        hard_vocab_limit=False, minloglevel=2, num_threads=1,
    )  # fmt: skip
    return Tokenizer(model.getvalue(), request.param)


@settings(max_examples=40, deadline=None)
@given(text=st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join), others=st.randoms())
def test_text_of_kept_pieces_is_segmented_as_before(tokenizer, text, others):
    ids = tokenizer.encode(text)
    plain = [index for index in range(tokenizer.vocab_size) if tokenizer.is_text(index)]
    smaller, old_ids = compact(tokenizer, set(ids) | set(others.sample(plain, 3)))
    assert [old_ids[index] for index in smaller.encode(text)] == ids
    assert [smaller.piece(i) for i in range(smaller.vocab_size)] == [tokenizer.piece(i) for i in old_ids]
    assert smaller.vocab_size < tokenizer.vocab_size


@settings(max_examples=40, deadline=None)
@given(text=st.text("the窗口 \nz42é", max_size=30), others=st.randoms())
def test_any_text_still_round_trips_through_bytes(tokenizer, text, others):
    plain = [index for index in range(tokenizer.vocab_size) if tokenizer.is_text(index)]
    smaller, _ = compact(tokenizer, set(others.sample(plain, len(plain) // 4)))
    assert smaller.decode(smaller.encode(text)) == text
    assert smaller.eot_id == smaller.control_id("<eot>")
    assert smaller.pad_id >= 0


# ---- Models of random pieces and scores, worse than any that is trained ----------------------------------------------

PIECE = sentencepiece_model.ModelProto.SentencePiece
LETTERS = "abcd"


def hand_made(pieces, model_type, byte_fallback=False):
    """A model of (text, score, type) behind <unk>, <pad>, <eot> and bytes, if any."""
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
    # few different scores, so that there are equal ones; far apart, so that unknown characters can win
    scores = st.integers(-8, 0).map(lambda score: 5.0 * score)
    return hand_made([(text, draw(scores), draw(kinds)) for text in texts], model_type, draw(st.booleans()))


@pytest.mark.parametrize("model_type", ["UNIGRAM", "BPE"])
@settings(max_examples=400, deadline=None)
@given(data=st.data(), others=st.randoms(use_true_random=False))
def test_whatever_the_model_text_of_kept_pieces_is_segmented_as_before(model_type, data, others):
    tokenizer = data.draw(random_models(sentencepiece_model.TrainerSpec.ModelType.Value(model_type)))
    texts = data.draw(st.lists(st.text(LETTERS, max_size=12), min_size=1, max_size=8))
    of_first = set(tokenizer.encode(texts[0]))
    plain = [index for index in range(tokenizer.vocab_size) if tokenizer.is_text(index)]
    smaller, old_ids = compact(tokenizer, of_first | set(others.sample(plain, others.randrange(len(plain) + 1))))
    stays = set(old_ids.tolist())
    assert of_first <= stays
    for text in texts:
        ids = tokenizer.encode(text)
        if set(ids) <= stays:
            assert [old_ids[index] for index in smaller.encode(text)] == ids


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_an_unknown_character_does_not_become_cheaper_than_a_removed_piece_was(byte_fallback):
    """sentencepiece scores an unknown character 10 below the worst piece, so removing the worst opens new paths."""
    pieces = [("x", -50.0), ("xy", -20.0), ("z", -20.0), ("yz", -1.0), ("y", -20.0)]
    tokenizer = hand_made([(text, score, PIECE.NORMAL) for text, score in pieces], 1, byte_fallback)
    ids = tokenizer.encode("xyz")
    assert [tokenizer.piece(index) for index in ids] == ["xy", "z"]
    smaller, old_ids = compact(tokenizer, {*ids, tokenizer.encode("yz")[0]})
    assert [smaller.piece(index) for index in smaller.encode("xyz")] == ["xy", "z"]
    assert smaller.vocab_size == len(old_ids) == tokenizer.vocab_size - 1


def test_a_merge_path_leads_through_unused_pieces():
    """BPE merges to pieces that are marked as unused, and takes apart those that are left in the end."""
    pieces = [("ab", -1.0, PIECE.UNUSED), ("abc", -2.0, PIECE.NORMAL), ("abcd", -3.0, PIECE.NORMAL)]
    tokenizer = hand_made(pieces, 2)
    ids = tokenizer.encode("abcd")
    assert [tokenizer.piece(index) for index in ids] == ["abcd"]
    smaller, old_ids = compact(tokenizer, set(ids))
    assert [old_ids[index] for index in smaller.encode("abcd")] == ids


def test_what_needs_what():
    pieces = [("a", -9.0), ("b", -9.0), ("c", -9.0), ("ab", -1.0), ("bc", -0.5), ("abc", -2.0), ("cc", -3.0)]
    places = {text: 3 + index for index, (text, _) in enumerate(pieces)}
    for model_type, expected in ((1, {"abc"}), (2, {"abc", "bc"})):
        tokenizer = hand_made([(text, score, PIECE.NORMAL) for text, score in pieces], model_type)
        vocabulary = Vocabulary(tokenizer)
        assert {tokenizer.piece(index) for index in vocabulary.needs(places["abc"])} == expected
        assert vocabulary.always == ({0, 1, 2, places["a"]} if model_type == 1 else {0, 1, 2})
