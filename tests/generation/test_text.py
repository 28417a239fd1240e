"""Text that is shown while tokens are generated: complete characters, and no part of a stop string."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu.generation.text import StopStrings, TextStream, whole_characters
from mindpangu.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_overrides):
    return Tokenizer.load(Path(tiny_overrides["training.output_dir"]) / "prepared" / "tokenizer" / "main.model")


def pieces_of(tokenizer, ids, prompt=()):
    stream = TextStream(tokenizer, prompt)
    return [stream.push(token) for token in ids] + [stream.end()]


@settings(max_examples=200)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="▁\0"), max_size=20))
def test_pieces_are_the_text_and_never_half_a_character(tokenizer, text):
    ids = tokenizer.encode(text)

    pieces = pieces_of(tokenizer, ids)

    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece in pieces)


@settings(max_examples=200)
@given(st.data())
def test_the_pieces_of_any_tokens_are_their_decoded_text(tokenizer, data):
    tokens = st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12)
    prompt = data.draw(tokens.filter(lambda each: "\ufffd" not in tokenizer.decode(each)))
    ids = data.draw(tokens)

    text = tokenizer.decode(prompt) + "".join(pieces_of(tokenizer, ids, prompt))

    assert text == tokenizer.decode([*prompt, *ids])


def test_a_character_of_several_bytes_appears_with_its_last_byte(tokenizer):
    ids = tokenizer.encode("🎈a")

    pieces = pieces_of(tokenizer, ids)

    assert len(ids) >= 5
    assert pieces[:3] == ["", "", ""]
    assert "".join(pieces[:4]) == "🎈"


def test_bytes_that_never_become_a_character_are_shown_at_the_end(tokenizer):
    first_byte = tokenizer.encode("🎈")[0]
    assert pieces_of(tokenizer, [first_byte, first_byte]) == ["", "", "\ufffd\ufffd"]


def test_partial_characters_are_cut_off_at_both_ends(tokenizer):
    ids = tokenizer.encode("🎈a🎈")
    assert whole_characters(tokenizer.decode(ids[1:-1])) == "a"


# ---- Stop strings ----------------------------------------------------------------------------------------------------


def cut(pieces, stops):
    """Returns the text shown after each piece, and whether a stop string was found."""
    watch = StopStrings(stops)
    shown = []
    for piece in pieces:
        shown.append(watch.push(piece))
        if watch.found:
            break
    else:
        shown.append(watch.end())
    return shown, watch.found


@given(
    pieces=st.lists(st.text("ab\n", max_size=4), max_size=12),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
)
def test_a_text_is_cut_before_its_first_stop_string(pieces, stops):
    shown, stopped = cut(pieces, stops)

    whole = "".join(pieces)
    seen = ""
    # the reference searches the whole text again after every piece
    for piece in pieces:
        seen += piece
        if any(stop in seen for stop in stops):
            break
    expected = min((seen.index(stop) for stop in stops if stop in seen), default=len(whole))
    assert "".join(shown) == whole[:expected]
    assert stopped == any(stop in whole for stop in stops)


def test_text_that_may_become_a_stop_string_is_held_back():
    shown, stopped = cut(["one\n", "\ntwo", "\n", "\n", "#", "# three"], ["\n\n##"])
    assert (shown, stopped) == (["one", "\n\ntwo", "", "", "", ""], True)

    shown, stopped = cut(["one\n", "\n#"], ["\n\n##"])
    assert (shown, stopped) == (["one", "", "\n\n#"], False)
