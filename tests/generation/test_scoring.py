"""Likelihoods of continuations equal those of a forward pass for each token, however they are batched."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from checkpoints import expert, open_model, reference_scores

from mindpangu.errors import GenerationError
from mindpangu.generation.generator import open_cache
from mindpangu.generation.scoring import Continuations, batches, score
from mindpangu.generation.steps import DecodingSteps, ExpertPools


def brute_force(model, prompt, continuation):
    """Returns log p of each token, each from a forward pass over the whole window."""
    ids = list(prompt.prompt)
    found = []
    for token in continuation:
        scores_V = reference_scores(model, model.domains[prompt.domain].name, ids).astype(np.float64)
        scores_V -= scores_V.max()
        found.append(scores_V[token] - np.log(np.exp(scores_V).sum()))
        ids.append(token)
    return np.array(found)


def random_prompts(model, rng, lengths, capacity):
    def ids(count):
        return tuple(rng.integers(80, 400, count).tolist())

    return [
        Continuations(
            int(rng.integers(0, len(model.domains))),
            ids(length),
            tuple(ids(int(rng.integers(1, capacity + 2 - length))) for _ in range(number)),
        )
        for length, number in lengths
    ]


def steps_of(model, batch, capacity=16):
    cache = open_cache(model.parts, lambda *where: expert(model, *where), batch)
    return DecodingSteps(model.parts, model.decoder, ExpertPools(model.parts, cache), batch, capacity)


def test_likelihoods_equal_brute_force_in_any_batch(tiny_overrides):
    model = open_model(tiny_overrides)
    rng = np.random.default_rng(0)
    # a prompt of one token, one that fills the window, more continuations than a batch
    prompts = random_prompts(model, rng, [(1, 3), (5, 2), (16, 2), (9, 7), (5, 1), (12, 4)], 16)
    expected = [[brute_force(model, each, tokens) for tokens in each.continuations] for each in prompts]

    for batch in (1, 4):
        found = dict(score(steps_of(model, batch), prompts, top=1))

        assert sorted(found) == list(range(len(prompts)))
        for index, scores in found.items():
            for one, wanted in zip(scores, expected[index], strict=True):
                np.testing.assert_allclose(one.log_probs_S, wanted, atol=1e-5)
                assert (one.top_log_probs_SK[:, 0] >= one.log_probs_S - 1e-5).all()


@pytest.mark.parametrize("size", [1, 3, 8])
def test_batches_hold_every_continuation_once_and_those_of_a_prompt_together(size):
    rng = np.random.default_rng(size)
    prompts = [
        Continuations(int(rng.integers(0, 2)), (1,) * int(rng.integers(1, 9)), ((1,),) * int(rng.integers(0, 6)))
        for _ in range(40)
    ]

    found = batches(prompts, size)

    everything = [(prompt, i) for prompt, each in enumerate(prompts) for i in range(len(each.continuations))]
    assert sorted(member for batch in found for member in batch) == everything
    assert all(0 < len(batch) <= size for batch in found)
    for prompt, each in enumerate(prompts):
        if 0 < len(each.continuations) <= size:
            assert sum(any(member[0] == prompt for member in batch) for batch in found) == 1


@pytest.mark.parametrize(
    ("prompt", "continuations", "message"),
    [
        ((1,), (), "prompt 1 has no continuations to score"),
        ((), ((1,),), "prompt 1 or one of its continuations has no tokens"),
        ((1,), ((1,), ()), "prompt 1 or one of its continuations has no tokens"),
        ((1,) * 16, ((1,), (1, 1)), "prompt 1 has 16 tokens and a continuation of 2; allowed are 17 together"),
    ],
)
def test_prompts_that_cannot_be_scored_are_refused(tiny_overrides, prompt, continuations, message):
    steps = steps_of(open_model(tiny_overrides), 2)

    with pytest.raises(GenerationError, match=message):
        list(score(steps, [Continuations(0, prompt, continuations)]))
