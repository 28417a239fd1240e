"""Mapping between vocabularies by text, on the published tokenizers of PanGu."""

from pathlib import Path

import numpy as np
import pytest

from mindpangu.checkpoint.vocabulary import VocabularyMap, random_rows
from mindpangu.tokenizer import Tokenizer
from mindpangu.tokenizer.compact import compact
from mindpangu.tokenizer.extend import extend

PROJECT = Path(__file__).parents[2]
MULTILINGUAL = PROJECT.parent / "shared" / "data" / "tokenizer" / "pangu_multilingual_128k.model"


@pytest.fixture(scope="module")
def alpha():
    return Tokenizer.load(PROJECT / "recipes" / "tokenizer" / "pangu_alpha_40k.model")


@pytest.fixture(scope="module")
def multilingual():
    if not MULTILINGUAL.exists():
        pytest.skip(f"{MULTILINGUAL} is not here")
    return extend(MULTILINGUAL.read_bytes(), ["<eot>", "<cn>", "<en>"], "128k")


def texts(tokenizer):
    """Returns id → text of its piece, for ids that are text."""
    plain = str.maketrans({"▁": " ", "▂": " ", "▃": "\n"})
    return {i: tokenizer.piece(i).translate(plain) for i in range(tokenizer.vocab_size) if tokenizer.is_text(i)}


def test_the_multilingual_vocabulary_keeps_the_rows_that_pangu_alpha_has(alpha, multilingual):
    mapping = VocabularyMap.between(alpha, multilingual, compose=False)

    old = texts(alpha)
    new = texts(multilingual)
    common = set(old.values()) & set(new.values())
    assert len(common) > 7800
    of_text = {i for i, sources in enumerate(mapping.sources) if sources and i in new}
    assert common <= {new[i] for i in of_text}
    for i in of_text:
        # PanGu-α begins every word with ▁, even where there is no blank
        assert old[mapping.sources[i][0]] in (new[i], " " + new[i])
        assert old[mapping.sources[i][0]] == new[i] or new[i] not in old.values()
    word = next(i for i, text in new.items() if text == "她")
    assert alpha.piece(mapping.sources[word][0]).lstrip("▁") == "她"
    # ▂ is PanGu-α's blank, and a blank of text that sentencepiece would not see
    assert mapping.sources[multilingual.eot_id] == (alpha.eot_id,)
    assert mapping.sources[multilingual.pad_id] == (alpha.pad_id,)
    assert mapping.sources[multilingual.control_id("<cn>")] == ()


@pytest.mark.slow
def test_new_tokens_are_means_of_the_tokens_that_spell_them(alpha, multilingual):
    mapping = VocabularyMap.between(alpha, multilingual)
    composed = {i: list(sources) for i, sources in enumerate(mapping.sources) if len(sources) > 1}
    words = {i: text for i, text in texts(multilingual).items() if i in composed and text.strip().isalpha()}
    ascii_words = {i: text for i, text in words.items() if text.isascii()}

    assert len(ascii_words) > 10000
    for i in list(ascii_words)[::100]:
        assert alpha.decode(composed[i]).strip() == ascii_words[i].strip()

    piece, sources = next(iter(composed.items()))
    old_VH = np.random.default_rng(0).standard_normal((alpha.vocab_size, 4), np.float32)
    drawn_VH = random_rows(0, "main", multilingual.vocab_size, 4, 0.02)

    rows = mapping.rows(old_VH, multilingual.vocab_size, drawn_VH)

    np.testing.assert_allclose(rows[piece], old_VH[sources].mean(0), rtol=1e-6)

    unknown = next(i for i in range(multilingual.vocab_size) if multilingual.piece(i) == "ло")
    assert mapping.sources[unknown] == ()
    np.testing.assert_array_equal(rows[unknown], drawn_VH[unknown])


def test_a_smaller_vocabulary_keeps_its_rows_one_by_one(alpha):
    """This includes tokens that look alike: ▁ and ▂ are both blanks to a reader."""
    smaller, old_ids = compact(alpha, set(range(0, alpha.vocab_size, 3)))

    mapping = VocabularyMap.between(alpha, smaller)
    assert mapping.sources == tuple((index,) for index in old_ids.tolist())


def test_a_published_bpe_model_loses_pieces_and_segments_as_before(multilingual):
    text = "The window opens and closes slowly. 打开窗口，然后保存文件。Das Fenster öffnet sich."
    ids = multilingual.encode(text)

    smaller, old_ids = compact(multilingual, set(ids))

    assert smaller.vocab_size < 1000
    assert [int(old_ids[i]) for i in smaller.encode(text)] == ids
    assert smaller.decode(smaller.encode(text)) == multilingual.decode(ids)


def test_pangu_alphas_model_loses_pieces_and_stays_what_it_is(alpha):
    text = "你好，今天天气不错。 我们去公园。\n好的"

    smaller, old_ids = compact(alpha, set(alpha.encode(text)))

    assert smaller.kind == "pangu_alpha"
    assert [int(old_ids[i]) for i in smaller.encode(text)] == alpha.encode(text)
