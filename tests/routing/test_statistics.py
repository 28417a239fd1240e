"""The load of the experts on a text, compared with direct counting and with figures computed by hand."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindpangu.errors import RoutingError
from mindpangu.routing import DomainTable, RoutingTable, compute_statistics, count_tokens, plot_load
from mindpangu.routing import statistics as statistics_module

# Two experts. Layer 0 routes token 0 to expert 0 and the others to expert 1; layer 1 routes everything to expert 1.
BY_HAND = RoutingTable([DomainTable("zh", 2, "random", np.array([[0, 1, 1], [1, 1, 1]], np.uint16))])


def test_figures_by_hand():
    train = np.array([0, 0, 0, 1, 0, 1, 2, 2, 0])

    found = compute_statistics(BY_HAND, {"zh": train}, {"zh": np.array([1, 1])}, tokens_per_step=4)

    lower, upper = found.of_domain("zh")
    np.testing.assert_array_equal(lower.train.tokens_E, [5, 4])
    assert lower.train.max_over_mean == pytest.approx(10 / 9)
    assert lower.train.coefficient_of_variation == pytest.approx(1 / 9)
    assert (lower.train.unused_experts, lower.heldout.unused_experts) == (0, 1)
    assert lower.heldout.max_over_mean == 2
    # Steps 0001 and 0122 put 3 of 4 tokens on one expert; the ninth token does not fill a step.
    assert (lower.step_mean, lower.step_p99) == (1.5, 1.5)
    assert (upper.layer, upper.train.unused_experts, upper.step_mean) == (1, 1, 2)
    assert [(hot.token, hot.multiple) for hot in found.hot_tokens["zh"]] == [(0, pytest.approx(10 / 9))]
    # All pairs share an expert in layer 1, so the only pair in layer 0 is as expected.
    assert found.overlap["zh"] == (1.0,)


@given(st.integers(1, 5), st.integers(1, 300), st.integers(1, 70), st.integers(0, 2**32))
def test_counts_agree_with_a_loop_over_tokens(num_experts, num_tokens, tokens_per_step, seed):
    rng = np.random.default_rng(seed)
    experts_LV = rng.integers(0, num_experts, (2, 30)).astype(np.uint16)
    table = RoutingTable([DomainTable("zh", num_experts, "random", experts_LV)])
    train = rng.integers(0, 30, num_tokens)
    heldout = rng.integers(0, 30, num_tokens)
    original = statistics_module._CHUNK_TOKENS
    statistics_module._CHUNK_TOKENS = 100  # several chunks

    try:
        groups = compute_statistics(table, {"zh": train}, {"zh": heldout}, tokens_per_step).groups
    finally:
        statistics_module._CHUNK_TOKENS = original

    for layer, group in enumerate(groups):
        for load, tokens in ((group.train, train), (group.heldout, heldout)):
            expected = [sum(experts_LV[layer, token] == expert for token in tokens) for expert in range(num_experts)]
            assert load.tokens_E.tolist() == expected
            assert load.max_over_mean == pytest.approx(max(expected) * num_experts / num_tokens)
        size = min(tokens_per_step, num_tokens)
        steps = [train[start : start + size] for start in range(0, num_tokens - size + 1, size)]
        worst = [np.bincount(experts_LV[layer, step]).max() * num_experts / size for step in steps]
        assert group.step_mean == pytest.approx(np.mean(worst))
        assert group.step_p99 == pytest.approx(np.percentile(worst, 99))


def test_a_step_may_be_larger_than_what_is_read_at_once(monkeypatch):
    monkeypatch.setattr(statistics_module, "_CHUNK_TOKENS", 3)

    found = compute_statistics(BY_HAND, {"zh": np.array([0, 0, 0, 1, 0, 1, 2, 2])}, {}, tokens_per_step=4)

    assert found.groups[0].step_mean == 1.5


def test_only_the_domains_with_text_are_measured():
    table = RoutingTable(
        DomainTable(name, 2, "random", np.array([[0, 1, 1]], np.uint16)) for name in ("zh", "en", "code")
    )

    found = compute_statistics(table, {"en": np.array([0, 1])}, {"en": np.array([0])}, 2)

    assert [group.domain for group in found.groups] == ["en"]
    assert found.overlap == {"en": ()}, "a single layer has no pair to compare"
    assert found.hot_tokens == {"en": ()}, "each token is exactly the mean load"
    assert found.digest == table.digest


@pytest.mark.parametrize("token", [3, -1])
def test_tokens_of_another_vocabulary_are_refused(token):
    with pytest.raises(RoutingError, match=f"domain 'zh' contains token id {token}, but its vocabulary has 3 ids"):
        compute_statistics(BY_HAND, {"zh": np.array([0, token])}, {}, 2)


def test_missing_text_and_bad_windows_are_refused():
    with pytest.raises(RoutingError, match="domain 'zh' has no training tokens"):
        compute_statistics(BY_HAND, {"zh": np.array([], np.int32)}, {}, 2)

    with pytest.raises(RoutingError, match="tokens_per_step is 0"):
        compute_statistics(BY_HAND, {"zh": np.array([0])}, {}, 0)

    with pytest.raises(RoutingError, match="no domain 'fr'"):
        compute_statistics(BY_HAND, {"fr": np.array([0])}, {}, 2)


def test_an_empty_heldout_text_leaves_its_figures_undefined(tmp_path):
    found = compute_statistics(BY_HAND, {"zh": np.array([0, 1])}, {}, 2)

    assert math.isnan(found.groups[0].heldout.max_over_mean)
    assert found.to_dict()["groups"][0]["heldout"]["max_over_mean"] is None
    assert "held out –" in found.summary()
    plot_load([found], tmp_path / "load.png")


def test_count_tokens_reads_narrow_and_memory_mapped_tokens(tmp_path):
    np.array([2, 0, 2], np.uint16).tofile(tmp_path / "tokens.bin")
    tokens = np.memmap(tmp_path / "tokens.bin", np.uint16, "r")

    np.testing.assert_array_equal(count_tokens(tokens, 4, "zh"), [1, 0, 2, 0])


def test_the_text_table_has_a_row_for_each_group_and_spells_hot_tokens():
    found = compute_statistics(BY_HAND, {"zh": np.array([0, 0, 0, 1])}, {"zh": np.array([1, 1])}, 4)

    lines = found.format_table(spell={0: "\n"}.__getitem__).splitlines()

    assert len(set(map(len, lines[1:4]))) == 1, "the columns are aligned"
    rows = [line.split() for line in lines[2:4]]
    assert rows[0] == ["zh", "0", "1.50", "2.00", "1.50", "1.50", "0.50", "1.00", "0", "1"]
    assert rows[1] == ["zh", "1", "2.00", "2.00", "2.00", "2.00", "1.00", "1.00", "1", "1"]
    assert lines[4] == r"zh: token 0 '\n' alone is 1.50 × the mean load"
    assert lines[5] == found.summary()
    assert "train 1.75, held out 2.00, per 4 tokens 1.75; up to 1 unused experts in a group; " in lines[5]
    assert "token 0 alone" in found.format_table()


@pytest.mark.parametrize(
    ("experts_LV", "expected"),
    [
        ([[0, 0, 1, 1], [0, 1, 0, 1]], "; no unused experts; layers group tokens independently (0.00 × chance)"),
        ([[0, 0, 1, 1], [0, 0, 1, 1]], "; no unused experts; layers group tokens similarly (3.00 × chance)"),
        (
            [[0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 1, 1]],
            "; no unused experts; layers group tokens similarly (3.00 × chance)",
        ),
        (
            [[0, 1, 0, 1], [0, 0, 0, 0]],
            "; up to 1 unused experts in a group; layers group tokens independently (1.00 × chance)",
        ),
        ([[0, 0, 0, 0]], "; up to 1 unused experts in a group"),
    ],
)
def test_the_summary_names_unused_experts_and_compares_layers(experts_LV, expected):
    table = RoutingTable([DomainTable("zh", 2, "random", np.array(experts_LV, np.uint16))])
    text = {"zh": np.arange(4)}

    summary = compute_statistics(table, text, text, 4).summary()

    assert summary.endswith(expected)


def test_the_dictionary_survives_json():
    found = compute_statistics(BY_HAND, {"zh": np.array([0, 0, 1])}, {}, 4).to_dict()

    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["groups"][0]["train"]["tokens_per_expert"] == [2, 1]


def test_plot_writes_a_png_for_one_table_and_for_a_comparison(tmp_path):
    tokens = {name: np.array([0, 1, 2, 2]) for name in ("zh", "en", "code")}
    both = []
    for assignment in ("random", "balanced"):
        experts_LV = np.array([[0, 1, 1], [1, 0, 1]], np.uint16)
        table = RoutingTable(DomainTable(name, 2, assignment, experts_LV) for name in tokens)
        both.append(compute_statistics(table, tokens, tokens, 4))

    for statistics, path in ((both, tmp_path / "new" / "both.png"), (both[:1], tmp_path / "one.png")):
        plot_load(statistics, path)
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000
