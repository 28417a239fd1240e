"""Tokenizers with fewer pieces: unigram and BPE."""

import io

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu.tokenizer import Tokenizer
from mindpangu.tokenizer.compact import compact

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


@settings(max_examples=40)
@given(text=st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join), others=st.randoms())
def test_text_of_kept_pieces_is_segmented_as_before(tokenizer, text, others):
    ids = tokenizer.encode(text)
    plain = [index for index in range(tokenizer.vocab_size) if tokenizer.is_text(index)]
    smaller, old_ids = compact(tokenizer, set(ids) | set(others.sample(plain, 3)))
    assert [old_ids[index] for index in smaller.encode(text)] == ids
    assert [smaller.piece(i) for i in range(smaller.vocab_size)] == [tokenizer.piece(i) for i in old_ids]
    assert smaller.vocab_size < tokenizer.vocab_size


@settings(max_examples=40)
@given(text=st.text("the窗口 \nz42é", max_size=30), others=st.randoms())
def test_any_text_still_round_trips_through_bytes(tokenizer, text, others):
    plain = [index for index in range(tokenizer.vocab_size) if tokenizer.is_text(index)]
    smaller, _ = compact(tokenizer, set(others.sample(plain, len(plain) // 4)))
    assert smaller.decode(smaller.encode(text)) == text
    assert smaller.eot_id == smaller.control_id("<eot>")
    assert smaller.pad_id >= 0
