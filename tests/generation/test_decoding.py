"""Decoding with a cache gives what the whole window gives, computed anew for every token without one."""

import numpy as np
import pytest

from mindpangu.config import load_config
from mindpangu.data import prompt_ids
from mindpangu.domains import domain_named
from mindpangu.generation.generator import Generator, Request, open_lines
from mindpangu.generation.steps import DecodingSteps, ExpertPools
from mindpangu.train.run import open_run, set_device

PROMPTS = {"en": "open the window and", "zh": "打开窗口", "code": "def f3(x):\n", "bilingual": "保存"}


def open_model(overrides, **changes):
    config = load_config(None, overrides | {"model.init_std": "0.15"} | changes)  # scores that differ clearly
    set_device(config)
    model = open_run(config).model
    model.store.initialize()
    return model


def read_from(model):
    """Experts as a checkpoint would give them."""
    return lambda layer, domain, index: {
        name: tensor[index] for name, tensor in model.store.weights[layer][domain].items()
    }


def lines_of(model, number=None):
    lines = open_lines(model.parts, read_from(model), 1)
    if lines is not None and number is not None:
        lines = type(lines)(model.table.num_layers, model.parts.expert_shapes, number, read_from(model))
    return lines


def reference_scores(model, domain_name, ids):
    """Of the next token, float32 [V]: the whole window, without a cache."""
    window = model.config.model.seq_length
    domain_id, domain = domain_named(model.domains, domain_name)
    tokens_BS = np.full((1, window), model.tokenizer_of(domain).pad_id, np.int32)
    tokens_BS[0, : len(ids)] = ids
    return model.next_token_logits(tokens_BS, domain_id, last=len(ids) - 1)[0]


def reference_loop(model, request):
    """Greedy token ids, and the gap between the two best scores at each of them."""
    _, domain = domain_named(model.domains, request.domain)
    tokenizer, length = model.tokenizer_of(domain), model.config.model.seq_length
    ids, start = prompt_ids(domain, request.prompt, tokenizer), 0
    prompt, gaps = len(ids), []
    while len(ids) < prompt + request.max_new_tokens:
        if len(ids) - start > length:
            start = len(ids) - length // 2
        scores = reference_scores(model, request.domain, ids[start:])[: tokenizer.vocab_size]
        last, best = np.argsort(scores)[-2:]
        gaps.append(scores[best] - scores[last])
        if best == tokenizer.eot_id:
            break
        ids.append(int(best))
    return ids[prompt:], gaps


def check_every_step(model, names, capacity, count=8):
    """A batch of a text in each of these domains, one of which ends early, against the loop without a cache."""
    steps = DecodingSteps(model.parts, model.decoder, ExpertPools(model.parts, lines_of(model)), len(names), capacity)
    chance = np.random.default_rng(0)
    ids, domains, texts = [], [], []
    for place, name in enumerate(names):
        domain_id, domain = domain_named(model.domains, name)
        text = prompt_ids(domain, PROMPTS[name], model.tokenizer_of(domain))[: 3 + place]
        scores = steps.prefill(place, domain_id, text)
        np.testing.assert_allclose(scores, reference_scores(model, name, text), atol=1e-4)
        ids.append(text), domains.append(domain_id), texts.append(name)
    largest = 0.0
    for step in range(count):
        active_B = np.ones(len(names), bool)
        active_B[0] = step < 3
        for place in np.flatnonzero(active_B):
            ids[place].append(int(chance.integers(80, 400)))
        last_B = np.array([text[-1] for text in ids], np.int32)
        scores = steps.extend(last_B, np.array([len(text) - 1 for text in ids], np.int32), np.array(domains), active_B)
        for place in np.flatnonzero(active_B):
            expected = reference_scores(model, texts[place], ids[place])
            np.testing.assert_allclose(scores[place], expected, atol=1e-4)
            largest = max(largest, np.abs(expected).max())
    assert largest > 0.1


@pytest.fixture(scope="module")
def sigma(tiny_overrides):
    return open_model(tiny_overrides)


def test_scores_of_mixed_domains_at_every_step(sigma):
    check_every_step(sigma, ["zh", "en", "bilingual", "code"], 16)
