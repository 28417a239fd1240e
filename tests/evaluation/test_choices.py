"""Answers by likelihood equal those of a scorer that computes every token alone, without batches or a cache."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "generation"))

from checkpoints import open_model, reference_scores, save

from mindpangu.data import prompt_ids
from mindpangu.domains import domain_named
from mindpangu.evaluation.choices import answer_questions, fit_window
from mindpangu.evaluation.task import NORMALIZATIONS, Question
from mindpangu.generation.generator import Generator

QUESTIONS = [
    Question("open the window", (" and save", " to close the door", " a"), 1, "windows"),
    Question("print", (" x", " y and then open the file that was saved before"), 0),
    Question("the file", (" is", " was", " has", " and"), None),
    Question("open the window and close the door and print the file and save it again", (" or", " not"), 1),
]


@pytest.fixture(scope="module")
def model_and_generator(tiny_overrides, tmp_path_factory):
    model = open_model(tiny_overrides)
    return model, Generator.load(save(model, tmp_path_factory.mktemp("model")))


def brute_force(model, question, normalization):
    """Returns the scores of the choices, and whether something was left out, from one forward pass per token."""
    _, domain = domain_named(model.domains, "en")
    tokenizer = model.tokenizer_of(domain)
    window = model.config.model.seq_length
    prompt = prompt_ids(domain, question.prompt, tokenizer)
    choices = [prompt_ids(domain, question.prompt + each, tokenizer)[len(prompt) :] for each in question.choices]
    longest = max(map(len, choices))
    kept = prompt
    while len(kept) > 1 and len(kept) + longest - 1 > window:
        kept = [kept[0], *kept[2:]]

    def likelihood(ids, continuation):
        ids = list(ids)
        total = 0.0
        for token in continuation[-window:]:
            scores_V = reference_scores(model, "en", ids).astype(np.float64)
            total += scores_V[token] - scores_V.max() - np.log(np.exp(scores_V - scores_V.max()).sum())
            ids.append(token)
        return total

    found = []
    for text, tokens in zip(question.choices, choices, strict=True):
        value = likelihood(kept, tokens)
        if normalization == "unconditional":
            value -= likelihood(prompt_ids(domain, "", tokenizer), tokens)
        found.append(value / {"tokens": len(tokens[-window:]), "characters": len(text)}.get(normalization, 1))
    return found, kept != prompt


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_scores_equal_brute_force_in_any_batch_and_order(model_and_generator, normalization):
    model, generator = model_and_generator
    expected = [brute_force(model, question, normalization) for question in QUESTIONS]
    assert [is_cut for _, is_cut in expected] == [False, True, False, True]

    for batch_size, order in ((8, [0, 1, 2, 3]), (3, [3, 1, 0, 2])):
        predictions = answer_questions(generator, [QUESTIONS[i] for i in order], "en", normalization, batch_size)

        for index, prediction in zip(order, predictions, strict=True):
            scores, is_cut = expected[index]
            np.testing.assert_allclose(prediction.scores, scores, atol=1e-4)
            assert prediction.choice == int(np.argmax(scores))
            assert prediction.is_cut == is_cut
            assert (prediction.answer, prediction.subject) == (QUESTIONS[index].answer, QUESTIONS[index].subject)


def test_equal_choices_are_a_tie_for_the_first(model_and_generator):
    _, generator = model_and_generator

    (tie,) = answer_questions(generator, [Question("open", (" the", " the", " a"), 0)], "en", "sum")
    (other,) = answer_questions(generator, [Question("open", (" the window", " a"), 0)], "en", "sum")

    assert tie.is_tie == (tie.choice == 0)
    assert not other.is_tie


@given(
    prompt=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    continuations=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=20), min_size=1, max_size=4),
    window=st.integers(1, 16),
)
def test_a_prompt_keeps_its_control_token_and_its_end(prompt, continuations, window):
    (kept, fitted), is_cut = fit_window(prompt, continuations, window)

    longest = max(map(len, fitted))
    assert len(kept) + longest - 1 <= window
    assert kept[0] == prompt[0]
    assert list(kept[1:]) == prompt[len(prompt) - len(kept) + 1 :]
    for tokens, whole in zip(fitted, continuations, strict=True):
        assert list(tokens) == whole[-window:]
    assert is_cut == (list(kept) != prompt or any(len(whole) > window for whole in continuations))
    if len(prompt) > len(kept):  # nothing was left out that fits
        assert len(kept) + longest - 1 == window
