"""Bits per byte against NumPy."""

import numpy as np
import pytest

from mindpangu.evaluation.bits_per_byte import bits_per_byte


def test_bits_per_byte_is_the_code_length_over_the_bytes():
    log_p_T = np.log(np.random.default_rng(0).uniform(0.01, 1, 50))

    found = bits_per_byte(-log_p_T.mean(), 50, 170)

    assert found == pytest.approx(-np.log2(np.exp(log_p_T)).sum() / 170)
