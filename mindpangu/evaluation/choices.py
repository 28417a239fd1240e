"""Answers questions by the likelihood of their choices."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mindpangu.data import prompt_ids
from mindpangu.domains import domain_named
from mindpangu.evaluation.task import Question
from mindpangu.generation.generator import Generator
from mindpangu.generation.scoring import Continuations, score

TIE = 1e-5
"""Nats per token: likelihoods that differ by less are equal, because rounding depends on the batch."""


@dataclass(frozen=True)
class Prediction:
    """The model's answer to a question.

    Attributes:
        scores: the normalized log-likelihood of each choice.
        choice: index of the highest one, the first of equal ones.
        answer: index of the right choice; None if it is not known.
        is_tie: True if the second highest score may be the highest, within rounding.
        is_cut: True if the beginning of the prompt or of a choice was left out to fit the window.
        subject: the question's subject.
    """

    scores: tuple[float, ...]
    choice: int
    answer: int | None
    is_tie: bool
    is_cut: bool
    subject: str = ""


def answer_questions(
    generator: Generator,
    questions: Sequence[Question],
    domain_name: str,
    normalization: str,
    batch_size: int = 32,
    progress: Callable[[Sequence], Iterable] = lambda items: items,
) -> list[Prediction]:
    """Lets a model choose the answer of each question, in their order.

    Args:
        domain_name: name of the domain whose experts and vocabulary are used.
        normalization: see `task.NORMALIZATIONS`.
        batch_size: number of choices to score together.
        progress: wraps a list of batches, e.g. in a progress bar.
    """
    domain_id, domain = domain_named(generator.parts.domains, domain_name)
    tokenizer = generator.parts.tokenizer_of(domain)
    window = generator.parts.config.model.seq_length
    encoded = []
    are_cut = []
    for question in questions:
        prompt = prompt_ids(domain, question.prompt, tokenizer)
        choices = [
            _continuation(prompt, prompt_ids(domain, question.prompt + each, tokenizer), tokenizer.encode(each))
            for each in question.choices
        ]
        fitted, is_cut = fit_window(prompt, choices, window)
        encoded.append(Continuations(domain_id, *fitted))
        are_cut.append(is_cut)
    if normalization == "unconditional":
        opening = tuple(prompt_ids(domain, "", tokenizer)) or (tokenizer.eot_id,)
        encoded += [Continuations(domain_id, opening, each.continuations) for each in encoded]

    steps = generator.steps_for(batch_size, window)
    sums: list[np.ndarray] = [np.zeros(0)] * len(encoded)
    for index, scores in score(steps, encoded, progress=progress):
        sums[index] = np.array([each.log_probs_S.sum(dtype=float) for each in scores])
    predictions = []
    for index, question in enumerate(questions):
        num_tokens = np.array([len(tokens) for tokens in encoded[index].continuations])
        normalized = sums[index]
        if normalization == "unconditional":
            normalized = normalized - sums[len(questions) + index]
        elif normalization == "tokens":
            normalized = normalized / num_tokens
        elif normalization == "characters":
            normalized = normalized / np.array([len(choice) for choice in question.choices])
        rounding = TIE if normalization in ("tokens", "characters") else TIE * num_tokens.max()
        predictions.append(_predict(question, normalized, rounding, are_cut[index]))
    return predictions


def fit_window(
    prompt: Sequence[int], continuations: Sequence[Sequence[int]], window: int
) -> tuple[tuple[tuple[int, ...], tuple[tuple[int, ...], ...]], bool]:
    """Shortens a prompt so that it fits a window with any of its continuations.

    The prompt loses tokens after its first one, the control token. A continuation that does not fit after that token
    alone keeps its end.

    Returns:
        The prompt and the continuations; and whether anything was left out.
    """
    # the last token of a continuation is predicted, but never read
    fitted = tuple(tuple(tokens[-window:]) for tokens in continuations)
    room = window - (max(map(len, fitted)) - 1)
    kept = (*prompt[:1], *prompt[len(prompt) - room + 1 :]) if len(prompt) > room else tuple(prompt)
    is_cut = len(kept) < len(prompt) or max(map(len, continuations)) > window
    return (kept, fitted), is_cut


def _continuation(prompt: Sequence[int], whole: Sequence[int], choice: Sequence[int]) -> Sequence[int]:
    """Returns the tokens of a choice after a prompt: those of the whole text after as many as the prompt has.

    This is also the rule of EleutherAI's lm-evaluation-harness. If the choice only changes the last token of the
    prompt, its own tokens are taken.
    """
    return whole[len(prompt) :] or choice


def _predict(question: Question, scores: np.ndarray, rounding: float, is_cut: bool) -> Prediction:
    choice = int(scores.argmax())
    gaps = scores[choice] - np.delete(scores, choice)
    return Prediction(
        scores=tuple(scores.tolist()),
        choice=choice,
        answer=question.answer,
        is_tie=bool((gaps < rounding).any()),
        is_cut=is_cut,
        subject=question.subject,
    )
