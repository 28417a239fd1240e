"""The likelihood of given continuations: each prompt is read once, whatever the number of its continuations."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mindpangu.errors import GenerationError
from mindpangu.generation.steps import DecodingSteps, TokenScores


@dataclass(frozen=True)
class Continuations:
    """A prompt and the continuations to score after it.

    Attributes:
        domain: id of the domain whose experts and vocabulary are used.
        prompt: its tokens, at least one; most domains begin with a control token.
        continuations: the tokens of each continuation, at least one each.
    """

    domain: int
    prompt: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]


def score(
    steps: DecodingSteps,
    prompts: Sequence[Continuations],
    top: int = 0,
    progress: Callable[[Sequence], Iterable] = lambda items: items,
) -> Iterator[tuple[int, list[TokenScores]]]:
    """Yields the index of each prompt and the scores of its continuations, batch by batch, longest prompts first.

    Results do not depend on the other prompts, beyond rounding.

    Args:
        steps: holds a batch of texts; every prompt with any of its continuations must fit its capacity.
        top: number of the most probable tokens to name at every token of a continuation.
        progress: wraps the list of batches, e.g. in a progress bar.

    Raises:
        GenerationError: a prompt or a continuation has no tokens, or they are too long together.
    """
    for index, each in enumerate(prompts):
        _check(index, each, steps.capacity)
    unfinished: dict[int, list[TokenScores]] = {}
    for batch in progress(batches(prompts, steps.batch)):
        for (index, _), found in zip(batch, _score_batch(steps, prompts, batch, top), strict=True):
            scores = unfinished.setdefault(index, [])
            scores.append(found)
            if len(scores) == len(prompts[index].continuations):
                yield index, unfinished.pop(index)


def batches(prompts: Sequence[Continuations], size: int) -> list[list[tuple[int, int]]]:
    """Divides all continuations into batches of at most `size`: lists of (prompt, continuation), longest prompts first.

    Continuations of a prompt remain together and in order, if they do not fill a batch themselves.
    """
    order = sorted(range(len(prompts)), key=lambda i: (prompts[i].domain, -len(prompts[i].prompt), i))
    found: list[list[tuple[int, int]]] = []
    for prompt in order:
        members = [(prompt, i) for i in range(len(prompts[prompt].continuations))]
        for first in range(0, len(members), size):
            piece = members[first : first + size]
            if not found or len(found[-1]) + len(piece) > size:
                found.append([])
            found[-1] += piece
    return found


def _score_batch(
    steps: DecodingSteps, prompts: Sequence[Continuations], batch: Sequence[tuple[int, int]], top: int
) -> list[TokenScores]:
    domains_B = np.full(steps.batch, prompts[batch[0][0]].domain)
    sources_B = np.arange(steps.batch)
    starts_B = np.zeros(steps.batch, np.int32)
    texts: list[Sequence[int]] = [[] for _ in range(steps.batch)]
    targets: list[Sequence[int]] = [[] for _ in range(steps.batch)]
    first_of: dict[int, int] = {}
    for text, (prompt, continuation) in enumerate(batch):
        each = prompts[prompt]
        # the last token of the prompt predicts the first one of the continuation: it is read together with the others
        *earlier, last = each.prompt
        domains_B[text] = each.domain
        starts_B[text] = len(earlier)
        sources_B[text] = first_of.setdefault(prompt, text)
        targets[text] = each.continuations[continuation]
        texts[text] = [last, *targets[text][:-1]]
        if sources_B[text] == text and earlier:
            steps.prefill(text, each.domain, earlier)
    if (sources_B != np.arange(steps.batch)).any() and starts_B.any():
        steps.copy(sources_B, int(starts_B.max()))
    return steps.append(texts, starts_B, domains_B, targets, top)[: len(batch)]


def _check(index: int, each: Continuations, capacity: int) -> None:
    if not each.continuations:
        raise GenerationError(f"prompt {index + 1} has no continuations to score")
    if not each.prompt or not all(each.continuations):
        raise GenerationError(f"prompt {index + 1} or one of its continuations has no tokens; both need at least one")
    longest = max(map(len, each.continuations))
    if len(each.prompt) + longest - 1 > capacity:
        raise GenerationError(
            f"prompt {index + 1} has {len(each.prompt)} tokens and a continuation of {longest}; allowed are "
            f"{capacity + 1} together: shorten the prompt"
        )
