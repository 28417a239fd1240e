"""Compares `balanced` with `random` on the corpus in the repository. `pytest -s` prints the figures.

A domain's load is its mean over 4 layers. Documents are held out in five folds, so that every document is held out
once and no single unusual document decides. The held-out figure is the mean over the folds.
"""

import hashlib
import io
import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from mindpangu.config import RoutingConfig
from mindpangu.domains import PRESETS
from mindpangu.routing import RoutingTable, compute_statistics, count_tokens

CORPUS = Path(__file__).parents[2] / "recipes" / "corpus"
DOMAINS = [replace(domain, num_experts=16) for domain in PRESETS["sigma_4"]]
NAMES = [domain.name for domain in DOMAINS]
NUM_LAYERS = 4
NUM_FOLDS = 5
TOKENS_PER_STEP = 1024
VOCAB_SIZE = 4000
RANDOM_SEEDS = range(1, 6)
FIGURES = ("train", "heldout", "step", "variation", "heldout variation")


@pytest.fixture(scope="module")
def folds():
    """Returns (domain, fold) → int64 [T], the tokens of the documents in a fold."""
    documents = read_documents()
    lines = [line for texts in documents.values() for text in texts for line in text.splitlines(keepends=True)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines[::6]),
        model_writer=model,
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["\n", "\t"],
        num_threads=2,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = {(name, fold): [] for name in NAMES for fold in range(NUM_FOLDS)}
    for name, texts in documents.items():
        for text in texts:
            fold = hashlib.blake2b(text.encode()).digest()[0] % NUM_FOLDS
            pieces[name, fold].append(np.array([*processor.encode(text), processor.eos_id()]))
    return {key: np.concatenate(arrays) for key, arrays in pieces.items()}


def read_documents():
    """Returns domain → texts. The sentence pairs of a bilingual document form one text."""
    documents = {name: {} for name in NAMES}
    for path in sorted(CORPUS.glob("*.jsonl")):
        for line_index, line in enumerate(path.read_text().splitlines()):
            record = json.loads(line)
            key = record["doc"] if "en" in record else (path.name, line_index)
            text = record.get("text") or f"{record['en']}\n{record['zh']}\n"
            documents[record["domain"]][key] = documents[record["domain"]].get(key, "") + text
    return {name: list(texts.values()) for name, texts in documents.items()}


@pytest.fixture(scope="module")
def measured(folds):
    """Returns (assignment, seed) → the statistics of each fold."""
    return {
        (assignment, seed): [measure(folds, heldout, assignment, seed) for heldout in range(NUM_FOLDS)]
        for assignment, seeds in (("balanced", [0]), ("random", RANDOM_SEEDS))
        for seed in seeds
    }


def measure(folds, heldout_fold, assignment, seed):
    train = {
        name: np.concatenate([folds[name, fold] for fold in range(NUM_FOLDS) if fold != heldout_fold]) for name in NAMES
    }
    counts = {name: count_tokens(tokens, VOCAB_SIZE, name) for name, tokens in train.items()}
    table = RoutingTable.build(DOMAINS, counts, NUM_LAYERS, RoutingConfig(assignment=assignment, seed=seed))
    return compute_statistics(table, train, {name: folds[name, heldout_fold] for name in NAMES}, TOKENS_PER_STEP)


def figures_of(statistics_of_folds, name):
    """Returns float64 [figures]: means over layers and folds, in the order of FIGURES."""
    rows = [
        [
            group.train.max_over_mean,
            group.heldout.max_over_mean,
            group.step_mean,
            group.train.coefficient_of_variation,
            group.heldout.coefficient_of_variation,
        ]
        for statistics in statistics_of_folds
        for group in statistics.of_domain(name)
    ]
    return np.mean(rows, axis=0)


@pytest.mark.parametrize("name", NAMES)
def test_balanced_beats_random_in_every_figure(measured, name):
    balanced = figures_of(measured["balanced", 0], name)
    random = np.array([figures_of(measured["random", seed], name) for seed in RANDOM_SEEDS])

    print(
        f"\n{name:>10}", *(f"{f}: {r:.3f} → {b:.3f}" for f, r, b in zip(FIGURES, random.mean(0), balanced, strict=True))
    )
    assert (balanced < random.mean(axis=0)).all()
    assert (balanced < random).all(), "balanced must beat each seed of random, not only their mean"


@pytest.mark.parametrize("name", NAMES)
def test_training_load_is_as_even_as_the_hottest_token_allows(measured, name):
    for statistics in measured["balanced", 0]:
        hottest = max((hot.multiple for hot in statistics.hot_tokens[name]), default=1.0)
        for group in statistics.of_domain(name):
            assert group.train.max_over_mean <= 1.005 * hottest


@pytest.mark.parametrize("name", NAMES)
def test_balanced_has_no_more_unused_experts_than_random(measured, name):
    def unused(statistics_of_folds):
        groups = [group for statistics in statistics_of_folds for group in statistics.of_domain(name)]
        return np.array([[group.train.unused_experts, group.heldout.unused_experts] for group in groups])

    for seed in RANDOM_SEEDS:
        assert (unused(measured["balanced", 0]) <= unused(measured["random", seed])).all()


def test_balanced_leaves_no_expert_unused_when_text_is_scarce(folds):
    # The whole corpus uses every expert in any case; with 60 tokens random leaves some unused.
    train = {name: folds[name, 0][:60] for name in NAMES}
    counts = {name: count_tokens(tokens, VOCAB_SIZE, name) for name, tokens in train.items()}

    unused = {}
    for assignment in ("random", "balanced"):
        table = RoutingTable.build(DOMAINS, counts, NUM_LAYERS, RoutingConfig(assignment=assignment))
        groups = compute_statistics(table, train, {}, TOKENS_PER_STEP).groups
        unused[assignment] = [group.train.unused_experts for group in groups]

    assert max(unused["balanced"]) == 0 < sum(unused["random"])


@pytest.mark.parametrize("name", NAMES)
def test_layers_group_the_frequent_tokens_independently(measured, name):
    for statistics in measured["balanced", 0]:
        overlaps = statistics.overlap[name]
        assert len(overlaps) == len(list(combinations(range(NUM_LAYERS), 2)))
        assert max(overlaps) <= 1.5
        assert np.mean(overlaps) == pytest.approx(1, abs=0.3), "neither alike nor deliberately different"
