"""Compact tokenizers of trained and published models: which pieces are kept, and how text is tokenized."""

import functools
import io

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu.errors import TokenizerError
from mindpangu.tiny.tokenizer.documents import Document
from mindpangu.tiny.tokenizer.piece_selection import PieceSelector, coverage
from mindpangu.tiny.tokenizer.usage import measure_usage
from mindpangu.tokenizer import Tokenizer

WORDS = "the window opens and closes slowly 打开 关闭 窗口 表格 然后 保存 def return (x): += 42 ，。".split()
RARE = "éß鑫龘🙂ﬁ"


@pytest.fixture(
    scope="module",
    params=[
        ("unigram", True, "identity"),
        ("unigram", False, "nmt_nfkc"),
        ("bpe", True, "nmt_nfkc"),
        ("bpe", False, "identity"),
    ],
    ids=lambda param: f"{param[0]}-{'bytes' if param[1] else 'unknown'}-{param[2]}",
)
def trained(request):
    """A small trained tokenizer."""
    kind, byte_fallback, rule = request.param
    lines = [" ".join(WORDS[i:] + WORDS[:i]) + RARE[:2] for i in range(len(WORDS))]
    model = io.BytesIO()
    plain = rule == "identity"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 9),
        model_writer=model,
        vocab_size=400 if byte_fallback else 140,
        model_type=kind,
        byte_fallback=byte_fallback,
        normalization_rule_name=rule,
        add_dummy_prefix=not plain,
        remove_extra_whitespaces=not plain,
        pad_id=1,
        bos_id=-1,
        eos_id=-1,
        control_symbols=["<eot>"],
        user_defined_symbols=["\n"],
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    return Tokenizer(model.getvalue(), kind)


@pytest.fixture(scope="module")
def selector(trained):
    return PieceSelector(trained)


@functools.cache
def pieces_of_text(tokenizer):
    return [tokenizer.piece(index) for index in range(tokenizer.vocab_size) if tokenizer.is_text(index)]


def removed_characters(old, new):
    """Returns the characters that pieces of the old tokenizer spell and that have no own piece in the new one."""
    return {character for piece in pieces_of_text(old) for character in piece} - set(pieces_of_text(new)) - {"\n"}


def texts():
    words = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)
    return st.lists(words | st.text("the窗口 \nz42q" + RARE, max_size=8), max_size=4).map("".join)


def draw_counts(draw, tokenizer):
    """Draws counts with many ties and many zeros."""
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).geometric(0.4, tokenizer.vocab_size).astype(np.int64) - 1


# ---- Kept pieces -----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_most_frequent_pieces_are_kept_with_what_they_need(trained, selector, data):
    counts_V = draw_counts(data.draw, trained)
    size = data.draw(st.integers(selector.min_size, trained.vocab_size - 1))

    kept = selector.select(size, counts_V)

    needs = selector._vocabulary.needs
    always = selector._vocabulary.always
    assert len(kept) == selector.tokenizer(kept).vocab_size == size
    for index in range(trained.vocab_size):
        if not trained.is_text(index):
            assert index in kept
        if index in kept:
            assert needs(index) <= kept
    # the first removed piece in the order of counts and ids did not fit; all before it were kept
    order = sorted(range(trained.vocab_size), key=lambda index: (-counts_V[index], index))
    rank = next(rank for rank, index in enumerate(order) if index not in kept)
    needed = needs(order[rank])
    num_free = size - len(frozenset(always).union(*map(needs, order[:rank])))
    assert len(needed - kept) > 0
    assert num_free < len(needed - frozenset(order[:rank]) - always)


def test_impossible_sizes_are_refused(trained, selector):
    counts_V = np.ones(trained.vocab_size, np.int64)

    assert len(selector.select(selector.min_size, counts_V)) == selector.min_size
    with pytest.raises(
        TokenizerError, match=rf"{selector.min_size - 1} pieces is too small: .* ask for {selector.min_size} "
    ):
        selector.select(selector.min_size - 1, counts_V)
    with pytest.raises(TokenizerError, match=f"has {trained.vocab_size}; ask for fewer"):
        selector.select(trained.vocab_size, counts_V)


def test_coverage_is_the_share_of_tokens():
    assert coverage({0, 2}, np.array([5, 3, 2])) == 0.7
    assert coverage(set(), np.zeros(3, np.int64)) == 1.0


# ---- Tokenized text --------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(data=st.data(), text=texts())
def test_text_of_kept_pieces_is_segmented_identically(trained, selector, data, text):
    ids = trained.encode(text)
    counts_V = draw_counts(data.draw, trained) + 10 * np.bincount(ids, minlength=trained.vocab_size)
    size = data.draw(st.integers(selector.min_size, trained.vocab_size - 1))

    kept = selector.select(size, counts_V)

    if set(ids) <= kept:
        old_ids = sorted(kept)
        assert [old_ids[index] for index in selector.tokenizer(kept).encode(text)] == ids


@settings(max_examples=30, deadline=None)
@given(data=st.data(), text=texts())
def test_text_without_removed_characters_decodes_as_before(trained, selector, data, text):
    has_bytes = trained.byte(trained.encode("\u0958")[-1]) is not None
    size = data.draw(st.integers(selector.min_size, trained.vocab_size - 1))

    smaller = selector.tokenizer(selector.select(size, draw_counts(data.draw, trained)))

    removed = removed_characters(trained, smaller)
    if has_bytes or not removed & set(normalized(trained, text)):
        assert smaller.decode(smaller.encode(text)) == trained.decode(trained.encode(text))


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_removed_characters_become_bytes_or_unknown(trained, selector, data):
    size = data.draw(st.integers(selector.min_size, selector.min_size + 20))

    smaller = selector.tokenizer(selector.select(size, draw_counts(data.draw, trained)))

    single_characters = {piece for piece in pieces_of_text(trained) if len(piece) == 1}
    for character in sorted(single_characters & removed_characters(trained, smaller)):
        ids = [index for index in smaller.encode(character) if not smaller.is_text(index)]
        if not ids:  # a longer kept piece spells it, together with the space that the model adds before a text
            assert f"▁{character}" in pieces_of_text(smaller)
            continue
        values = [smaller.byte(index) for index in ids]
        assert ids == [smaller.unk_id] or bytes(values) == character.encode("utf-8")


@settings(max_examples=30, deadline=None)
@given(data=st.data(), texts=st.lists(texts(), min_size=1, max_size=4))
def test_characters_that_no_piece_spells_are_counted(trained, selector, data, texts):
    size = data.draw(st.integers(selector.min_size, trained.vocab_size - 1))
    smaller = selector.tokenizer(selector.select(size, draw_counts(data.draw, trained)))

    usages = measure_usage(Texts(texts), Texts(texts), [trained, smaller])

    for tokenizer, usage in zip((trained, smaller), usages, strict=True):
        encoded = [tokenizer.encode(text) for text in texts]
        spelled = sum(len(tokenizer.piece(index)) for ids in encoded for index in ids if tokenizer.is_text(index))
        assert usage.as_bytes + usage.unknown == sum(len(normalized(trained, text)) for text in texts) - spelled
        has_bytes = tokenizer.byte(tokenizer.encode("\u0958")[-1]) is not None
        assert (usage.unknown if has_bytes else usage.as_bytes) == 0
        assert usage.tokens == sum(map(len, encoded))
        assert usage.num_bytes == sum(len(text.encode()) for text in texts)
        assert usage.characters == sum(map(len, texts))


class Texts:
    """Returns texts as documents, and a split that holds out all of them."""

    digest = ""
    total_bytes = 0
    bytes_read = 0

    def __init__(self, texts):
        self.texts = texts

    def __iter__(self):
        yield from (Document("", ("", str(index)), (text,)) for index, text in enumerate(self.texts))

    def is_heldout(self, document):
        return True


def normalized(tokenizer, text):
    """Returns the text as sentencepiece segments it, with ▁ for spaces."""
    return processor_of(tokenizer).normalize(text)


@functools.cache
def processor_of(tokenizer):
    return sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_bytes)


# ---- The published tokenizers on the embedded corpus -----------------------------------------------------------------


@pytest.mark.parametrize("size", [4000, 8000, 16000])
def test_coverage_of_heldout_text_is_within_one_percent_of_the_prediction(published, size):
    kept = published.selector.select(size, published.counts.train_V)

    predicted = coverage(kept, published.counts.train_V)

    assert coverage(kept, published.counts.heldout_V) == pytest.approx(predicted, rel=0.01)
    assert 0.9 < predicted <= 1


@pytest.mark.parametrize("size", [1000, 8000])
def test_published_tokenizers_keep_their_segmentation(published, size):
    kept = published.selector.select(size, published.counts.train_V)

    smaller = published.selector.tokenizer(kept)

    assert smaller.kind == published.tokenizer.kind
    assert smaller.vocab_size == size
    # compares lines, because most whole documents have a rare piece
    lines = sorted({line for text in published.heldout_texts() for line in text.splitlines()})
    removed = removed_characters(published.tokenizer, smaller)
    old_ids = np.array(sorted(kept))
    num_segmented = 0
    num_decoded = 0
    before, after = (tokenizer.encode_batch(lines, 2) for tokenizer in (published.tokenizer, smaller))
    for line, ids, new_ids in zip(lines, before, after, strict=True):
        if kept.issuperset(ids):
            assert old_ids[new_ids].tolist() == ids
            num_segmented += 1
        if removed.isdisjoint(normalized(published.tokenizer, line)):
            assert smaller.decode(new_ids) == published.tokenizer.decode(ids)
            num_decoded += 1
    assert num_segmented > 100
    assert num_decoded > 100
