"""Means over domains, paired differences and their intervals."""

import math

import pytest


@pytest.fixture(scope="module")
def intervals(load_tool):
    return load_tool("comparison/intervals")


def test_paired_differences_and_their_interval(intervals):
    first = [{"en": 5.0, "zh": 6.0}, {"en": 5.2, "zh": 6.0}, {"en": 5.1, "zh": 6.0}]
    second = [{"en": 5.3, "zh": 6.5}, {"en": 5.4, "zh": 6.5}, {"en": 5.5, "zh": 6.5}]

    differences = intervals.paired_differences(first, second)

    assert differences["en"].mean == pytest.approx(-0.3)
    # differences −0.3, −0.2, −0.4: standard deviation 0.1; t(0.975, 2) = 4.303
    assert differences["en"].half_width == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    assert differences["zh"] == intervals.Interval(-0.5, 0.0)
    # the means −0.4, −0.35, −0.45 have half the standard deviation
    assert differences["mean"].mean == pytest.approx(-0.4)
    assert differences["mean"].half_width == pytest.approx(4.303 * 0.05 / math.sqrt(3), rel=1e-3)
    assert str(differences["en"]) == "-0.300 ± 0.248"


def test_a_single_seed_has_no_interval(intervals):
    assert intervals.paired_differences([{"en": 5.0}], [{"en": 4.0}]) == {}


def test_the_mean_over_the_domains_is_added(intervals):
    assert intervals.with_mean({"en": 4.0, "zh": 5.0}) == {"en": 4.0, "zh": 5.0, "mean": 4.5}
