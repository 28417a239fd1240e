"""Samples: windows of a stream of text, and records with their masks."""

import numpy as np
import pytest

from mindpangu.data.samples import Samples


@pytest.mark.parametrize(("num_tokens", "count"), [(0, 0), (3, 0), (4, 1), (6, 1), (7, 2), (10, 3)])
def test_samples_of_text_share_one_token(num_tokens, count):
    samples = Samples(np.arange(num_tokens), 3)

    assert len(samples) == count
    for index in range(count):
        window, counted = samples[index]
        assert window.tolist() == list(range(3 * index, 3 * index + 4))
        assert counted is None


@pytest.mark.parametrize(("num_tokens", "count"), [(0, 0), (4, 1), (8, 2), (20, 5)])
def test_samples_of_records_share_none_and_have_a_mask(num_tokens, count):
    samples = Samples(np.arange(num_tokens), 3, np.arange(num_tokens) + 100)

    assert len(samples) == count
    for index in range(count):
        window, counted = samples[index]
        assert window.tolist() == list(range(4 * index, 4 * index + 4))
        assert counted.tolist() == [100 + token for token in window.tolist()]


@pytest.mark.parametrize("counted", [None, np.ones(8)])
@pytest.mark.parametrize("index", [-1, 2])
def test_an_index_outside_is_refused(index, counted):
    samples = Samples(np.arange(8), 3, counted)
    assert len(samples) == 2

    with pytest.raises(IndexError, match=str(index)):
        samples[index]
