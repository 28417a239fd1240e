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


class Pieces:
    """A vocabulary as `VocabularyMap` sees it: ids of pieces in order; <…> are control tokens. It spells text with its
    longest pieces, as sentencepiece would, with ▁ for a blank."""

    unk_id = 0

    def __init__(self, *pieces, kind="sentencepiece"):
        self._pieces = ("<unk>", *pieces)
        self.kind = kind
        self.vocab_size = len(self._pieces)

    def piece(self, index):
        return self._pieces[index]

    def is_text(self, index):
        return not self._pieces[index].startswith("<")

    def encode(self, text):
        text = text.replace(" ", "▁")
        ids = []
        while text:
            fitting = [i for i in range(self.vocab_size) if self.is_text(i) and text.startswith(self._pieces[i])]
            longest = max(fitting, key=lambda i: len(self._pieces[i]), default=self.unk_id)
            ids.append(longest)
            text = text[len(self._pieces[longest]) if fitting else 1 :]
        return ids


@pytest.mark.parametrize(
    ("piece", "sources"),
    [
        ("<unk>", (0,)),
        ("<eot>", (4,)),
        ("<cn>", ()),  # a control token that the old vocabulary lacks
        ("a", (2,)),
        ("ab", (3,)),
        ("▁a", (5,)),
        ("abb", (3, 1)),  # a new word: the mean of what spells it
        ("▁ab", (5, 1)),
        ("abc", ()),  # c cannot be spelled
    ],
)
def test_a_token_starts_from_the_old_tokens_of_its_text(piece, sources):
    old = Pieces("b", "a", "ab", "<eot>", "▁a")
    new = Pieces("x", piece) if piece != "<unk>" else Pieces("x")

    mapping = VocabularyMap.between(old, new)

    assert mapping.sources[-1 if piece != "<unk>" else 0] == sources
    assert mapping.shared == 1 + (len(sources) == 1 and piece != "<unk>")
    assert mapping.composed == (len(sources) > 1)
    without = VocabularyMap.between(old, new, compose=False)
    assert without.sources[-1] == (sources if len(sources) == 1 and piece != "<unk>" else ())


def test_equal_pieces_of_one_kind_of_vocabulary_keep_their_rows_even_if_others_look_alike():
    old = Pieces("▁", "▂", "b", kind="pangu_alpha")
    new = Pieces("▂", "▁", kind="pangu_alpha")

    assert VocabularyMap.between(old, new).sources == ((0,), (2,), (1,))


@pytest.mark.parametrize(
    ("piece", "sources"),
    [
        ("她", (2,)),  # PanGu-α begins every word with ▁, so its ▁她 is also 她
        ("▁她", (2,)),
        ("▁", (1,)),  # a blank stays one
        ("中", (3,)),  # the piece without ▁ comes first
        ("▁中", (4,)),
        ("\n", (5,)),
    ],
)
def test_pangu_alphas_words_are_also_words_without_a_blank(piece, sources):
    old = Pieces("▂", "▁她", "中", "▁中", "▃", kind="pangu_alpha")

    assert VocabularyMap.between(old, Pieces(piece), compose=False).sources == ((0,), sources)


@pytest.mark.parametrize(("piece", "sources"), [("▁她", (1,)), ("▁中", (3,)), ("▃", (2,)), ("▁", ())])
def test_a_vocabulary_of_pangu_alphas_kind_takes_words_without_a_blank(piece, sources):
    old = Pieces("她", "\n", "▁中", "中")

    assert VocabularyMap.between(old, Pieces(piece, kind="pangu_alpha"), compose=False).sources == ((0,), sources)


def test_rows_are_kept_averaged_or_drawn():
    old_VH = np.arange(8, dtype=np.float16).reshape(4, 2)
    random_VH = random_rows(0, "word_embedding/main", 5, 2, 0.02)
    drawn_VH = random_VH.copy()

    new_VH = VocabularyMap(((2,), (), (0, 3), (1,))).rows(old_VH, 5, random_VH)

    np.testing.assert_array_equal(new_VH, [[4, 5], drawn_VH[1], [3, 4], [2, 3], drawn_VH[4]])
    assert new_VH.dtype == np.float32
    np.testing.assert_array_equal(random_VH, drawn_VH)


def test_random_rows_depend_on_seed_and_stream():
    rows = random_rows(3, "word_embedding/main", 2000, 4, 0.02)

    assert rows.shape == (2000, 4)
    assert rows.dtype == np.float32
    assert rows.std() == pytest.approx(0.02, rel=0.05)
    np.testing.assert_array_equal(rows, random_rows(3, "word_embedding/main", 2000, 4, 0.02))
    for other in (random_rows(4, "word_embedding/main", 2000, 4, 0.02), random_rows(3, "head/main", 2000, 4, 0.02)):
        assert not np.array_equal(rows, other)


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
