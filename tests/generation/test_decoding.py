"""Scores with the cache equal those of the whole window, recomputed for every token without a cache."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from checkpoints import expert, open_model, reference_scores

from mindpangu.data import prompt_ids
from mindpangu.domains import domain_named
from mindpangu.generation.generator import open_cache
from mindpangu.generation.steps import DecodingSteps, ExpertPools, lengths

PROMPTS = {"en": "open the window and", "zh": "打开窗口", "code": "def f3(x):\n", "bilingual": "保存"}


def check_every_step(model, names, capacity=16, count=8, tolerance=1e-4):
    """Decodes a batch with one text in each of these domains, the first of which ends early."""
    cache = open_cache(model.parts, lambda *where: expert(model, *where), 1)
    steps = DecodingSteps(model.parts, model.decoder, ExpertPools(model.parts, cache), len(names), capacity)
    rng = np.random.default_rng(0)
    ids = []
    domains = []
    for index, name in enumerate(names):
        domain_id, domain = domain_named(model.domains, name)
        domains.append(domain_id)
        ids.append(prompt_ids(domain, PROMPTS[name], model.tokenizer_of(domain))[: 3 + index])
        scores = steps.prefill(index, domain_id, ids[-1])
        np.testing.assert_allclose(scores, reference_scores(model, name, ids[-1])[: len(scores)], atol=tolerance)
    for step in range(count):
        active_B = np.ones(len(names), bool)
        active_B[0] = step < 3
        if step == 5:  # a restarted text must see nothing of the earlier text with its index
            ids[1] = ids[1][-4:]
            steps.prefill(1, domains[1], ids[1])
        for index in np.flatnonzero(active_B):
            ids[index].append(int(rng.integers(80, 400)))
        tokens_B = np.array([text[-1] for text in ids], np.int32)
        positions_B = np.array([len(text) - 1 for text in ids], np.int32)
        scores = steps.extend(tokens_B, positions_B, np.array(domains), active_B)
        for index in np.flatnonzero(active_B):
            expected = reference_scores(model, names[index], ids[index])
            assert expected.std() > 0.2
            np.testing.assert_allclose(scores[index], expected, atol=tolerance)


def test_scores_of_domains_and_prompt_lengths_in_one_batch(tiny_overrides):
    check_every_step(open_model(tiny_overrides), ["zh", "en", "bilingual", "code"])


def test_scores_of_a_dense_model_whose_positions_restart_after_eot(tiny_overrides):
    check_every_step(open_model(tiny_overrides, model__rre_layers="0", data__eod_reset="true"), ["zh", "en"])


@pytest.mark.parametrize("rre_layers", ["0", pytest.param("2", marks=pytest.mark.slow)], ids=["dense", "rre"])
def test_scores_of_pangu_pi_without_a_query_layer(tiny_overrides, pangu_pi, rre_layers):
    check_every_step(open_model(tiny_overrides | pangu_pi, model__rre_layers=rre_layers), ["zh", "en"])


@pytest.mark.slow
def test_scores_of_rre_blocks_below_the_query_layer_with_resets(tiny_overrides):
    check_every_step(open_model(tiny_overrides, data__eod_reset="true"), ["zh", "en"])


@pytest.mark.slow
def test_half_precision(tiny_overrides):
    # both round to 10 bits after every product, but at different points
    check_every_step(open_model(tiny_overrides, context__precision="fp16"), ["zh", "en"], tolerance=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("names", [["zh", "en"], ["en", "code"]], ids=["mixed", "same"])
def test_scores_of_several_vocabularies(tiny_overrides, tmp_path, names):
    from mindpangu.config import load_config
    from mindpangu.data.prepare import prepare_routing, prepare_shards, prepare_tokenizer

    overrides = tiny_overrides | {
        "domains.vocabularies": "[{name: a, vocab_size: 420, domains: [bilingual, zh]},"
        " {name: b, vocab_size: 430, domains: [en, code]}]",
        "training.output_dir": str(tmp_path),
    }
    for prepare in (prepare_tokenizer, prepare_shards, prepare_routing):
        prepare(load_config(None, overrides), log=lambda text: None)
    check_every_step(open_model(overrides), names)
    check_appended(open_model(overrides), names)


@pytest.mark.parametrize("longest", [1, 2, 15, 16, 17, 100, 512, 1000])
def test_lengths_are_ascending_and_end_with_the_longest(longest):
    values = lengths(longest)

    assert values == sorted(set(values))
    assert values[-1] == longest
    # padding at most doubles a prompt of 16 or more tokens
    assert all(later <= 2 * earlier for earlier, later in pairwise(values))


def reference_log_probs(model, name, ids, first):
    """Returns log p [S, V] of the tokens after each of ids[first:], each from a forward pass of its own."""
    found = []
    for count in range(first + 1, len(ids) + 1):
        scores_V = reference_scores(model, name, ids[:count]).astype(np.float64)
        scores_V -= scores_V.max()
        found.append(scores_V - np.log(np.exp(scores_V).sum()))
    return np.array(found)


def check_appended(model, names, capacity=16, tolerance=1e-4):
    """Copies the beginning of a text to the others of its domain, and appends texts of different lengths."""
    cache = open_cache(model.parts, lambda *where: expert(model, *where), 1)
    steps = DecodingSteps(model.parts, model.decoder, ExpertPools(model.parts, cache), len(names), capacity)
    rng = np.random.default_rng(1)
    domains_B = np.array([domain_named(model.domains, name)[0] for name in names])
    sources_B = np.array([names.index(name) for name in names])
    begun = {}
    for index in np.unique(sources_B).tolist():
        _, domain = domain_named(model.domains, names[index])
        begun[names[index]] = prompt_ids(domain, PROMPTS[names[index]], model.tokenizer_of(domain))[:3]
        steps.prefill(index, int(domains_B[index]), begun[names[index]][:2])
    steps.copy(sources_B, 2)
    # each time replaces what the time before appended
    for top, counts in ((0, [1, 4, 2, 6]), (3, [3, 0, 5, 1]), (2, [2, 5, 1, 3])):
        targets = [rng.integers(80, 400, count).tolist() for count in counts[: len(names)]]
        # the last token of the beginning is read together with the new ones, of which it predicts the first
        texts = [[begun[name][2], *ids[:-1]] if ids else [] for name, ids in zip(names, targets, strict=True)]
        scores = steps.append(texts, np.full(len(names), 2), domains_B, targets, top)
        for name, ids, text, found in zip(names, targets, texts, scores, strict=True):
            assert found.log_probs_S.shape == (len(ids),)
            assert found.top_ids_SK.shape == found.top_log_probs_SK.shape == (len(ids), top)
            if not ids:
                continue
            expected_SV = reference_log_probs(model, name, [*begun[name][:2], *text], 2)
            of_targets_S = np.take_along_axis(expected_SV, np.array(ids)[:, None], 1)[:, 0]
            np.testing.assert_allclose(found.log_probs_S, of_targets_S, atol=tolerance)
            highest_SK = -np.sort(-expected_SV, 1)[:, :top]
            np.testing.assert_allclose(found.top_log_probs_SK, highest_SK, atol=tolerance)
            of_ids_SK = np.take_along_axis(expected_SV, found.top_ids_SK, 1)
            np.testing.assert_allclose(of_ids_SK, highest_SK, atol=tolerance)


def test_appended_tokens_have_the_probabilities_of_the_whole_window(tiny_overrides):
    check_appended(open_model(tiny_overrides), ["zh", "zh", "en", "zh"])


@pytest.mark.slow
@pytest.mark.parametrize("rre_layers", ["0", "2"], ids=["dense", "rre"])
def test_appended_tokens_of_pangu_pi(tiny_overrides, pangu_pi, rre_layers):
    check_appended(open_model(tiny_overrides | pangu_pi, model__rre_layers=rre_layers), ["zh", "en", "zh"])
