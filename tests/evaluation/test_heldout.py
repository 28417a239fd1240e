"""Held-out loss: a trained model against its baselines, and the baseline against NumPy."""

import json

import numpy as np
import pytest

from mindpangu.data import Batch, equal_parts
from mindpangu.evaluation.heldout import evaluate_heldout, unigram_loss
from mindpangu.evaluation.record import evaluation_record, format_results


def test_heldout_loss_beats_unigram_and_wrong_domains(trained):
    names = list(trained.shards.domain_names)

    results = evaluate_heldout(trained.model, trained.shards, trained.config)

    assert [result.domain for result in results] == names
    for result in results:
        assert result.ratio < 0.95, format_results(results)
        assert set(result.loss_as) == set(names) - {result.domain}
        assert all(loss > result.loss for loss in result.loss_as.values())
    table = format_results(results)
    assert all(name in table for name in names)
    record = evaluation_record(160, results)
    assert json.loads(json.dumps(record)) == record


def test_unigram_baseline_by_hand():
    tokens_BS = np.array([[0, 1]], np.int32)
    targets_BS = np.array([[1, 3]], np.int32)
    mask_BS = np.array([[1.0, 1.0]], np.float32)
    batch = Batch(tokens_BS, targets_BS, tokens_BS, mask_BS, (0,), equal_parts(1, 1), tokens_BS)
    counts_V = np.array([5, 3, 2, 0])

    loss = unigram_loss(counts_V, [batch])

    assert loss == pytest.approx(-(np.log(3.1 / 10.4) + np.log(0.1 / 10.4)) / 2)
