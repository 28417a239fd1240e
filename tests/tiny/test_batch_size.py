"""The batch-size rule against NumPy, the fit of its exponent, and the sweep."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindpangu.config import check, load_config
from mindpangu.errors import ConfigError, TrainingError
from mindpangu.tiny.batch_size import PLOT, RESULTS, Fit, scaled_learning_rate, sweep, trial_config

sizes = st.floats(1, 1e7)


def test_the_rule_matches_hand_computed_rates():
    assert scaled_learning_rate(4_000_000, 1_000_000, 1e-4) == pytest.approx(2e-4)
    assert scaled_learning_rate(1_000_000, 4_000_000, 2e-4) == pytest.approx(1e-4)
    assert scaled_learning_rate(8, 8, 3e-4, exponent=2.0) == 3e-4


@given(sizes, sizes, st.floats(1e-6, 1), st.floats(-2, 2))
def test_the_rule_matches_numpy(batch, base_batch, base_rate, exponent):
    expected = np.power(np.float64(batch) / base_batch, exponent) * base_rate

    rate = scaled_learning_rate(batch, base_batch, base_rate, exponent)

    assert rate == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("wrong", [(0, 1, 1), (1, -1, 1), (1, 1, 0), (1, 1, math.nan), (math.inf, 1, 1)])
def test_the_rule_refuses_meaningless_numbers(wrong):
    with pytest.raises(ConfigError, match=r"is .*; allowed: > 0"):
        scaled_learning_rate(*wrong)

    with pytest.raises(ConfigError, match="the exponent is nan"):
        scaled_learning_rate(1, 1, 1, math.nan)

    for exponent, rate in ((5000.0, "inf"), (-5000.0, "0")):
        with pytest.raises(ConfigError, match=f"the exponent is {exponent}, which makes the rate {rate}; give one"):
            scaled_learning_rate(2, 1, 1e-4, exponent)


def losses_with_exponent(exponent, batches, rates):
    """Returns losses whose best rate is 1e-3 · (batch / 4)^exponent."""
    return {
        (batch, rate): 2 + math.log(rate / scaled_learning_rate(batch, 4, 1e-3, exponent)) ** 2
        for batch in batches
        for rate in rates
    }


@given(
    st.floats(-0.9, 0.9),
    st.lists(st.integers(1, 10), min_size=2, max_size=6, unique=True),
    st.floats(1.2, 4),
    st.randoms(use_true_random=False),
)
def test_the_fit_is_least_squares_and_within_its_resolution(exponent, powers, step, rng):
    batches = [2**power for power in powers]
    rates = [1e-3 * step**i for i in range(-40, 41)]
    pairs = list(losses_with_exponent(exponent, batches, rates).items())
    rng.shuffle(pairs)

    fit = Fit.from_losses(dict(pairs))

    slope = np.polyfit(np.log(sorted(batches)), np.log([fit.best[batch] for batch in sorted(batches)]), 1)[0]
    assert fit.exponent == pytest.approx(slope, abs=1e-8)
    assert abs(fit.exponent - exponent) <= fit.resolution + 1e-9
    assert fit.at_edge == ()


def test_an_exponent_of_zero_has_no_minus_sign():
    # the best rate is the same for every batch, so r is 0
    losses = {(batch, rate): abs(rate - 2e-3) for batch in (4, 8, 16) for rate in (1e-3, 2e-3, 4e-3)}

    assert str(Fit.from_losses(losses)).startswith("r = 0.00 ± ")


def test_the_resolution_matches_a_hand_computed_one_and_a_best_rate_at_the_edge_is_named():
    fit = Fit.from_losses(losses_with_exponent(0.5, (4, 16), (5e-4, 1e-3, 2e-3)))

    assert fit.best == {4: 1e-3, 16: 2e-3}
    assert fit.exponent == pytest.approx(0.5)
    # either end may be off by half of log 2, over log 4
    assert fit.resolution == pytest.approx(0.5)
    assert fit.at_edge == (16,)
    assert str(fit).startswith("r = 0.50 ± 0.50 (the steps between rates); the paper's: 0.5\nthe best rate of batch 16")


def test_a_fit_needs_two_batches_and_two_rates():
    for batches, rates in (((4,), (1e-3, 2e-3)), ((4, 8), (1e-3,))):
        with pytest.raises(ConfigError, match="at least two batches and two rates"):
            Fit.from_losses(losses_with_exponent(0.5, batches, rates))


@pytest.fixture
def config(tiny_overrides):
    return load_config(None, tiny_overrides | {"model.rre_layers": "0"})


def test_every_trial_has_the_same_tokens_and_the_same_shares_of_warm_up_and_decay(config):
    for batch, local in ((1, 1), (4, 4), (6, 3), (8, 4), (16, 4)):
        trial = trial_config(config, batch, 3e-3, tokens=16 * 16 * 12)

        check(trial)
        assert trial.training.steps * batch * trial.model.seq_length == 16 * 16 * 12
        assert (trial.training.local_batch_size, trial.training.global_batch_size) == (local, batch)
        schedule = trial.lr_scheduler
        assert schedule.learning_rate == 3e-3
        assert schedule.lr_end / schedule.learning_rate == pytest.approx(0.01)
        assert schedule.decay_steps == trial.training.steps
        assert schedule.warmup_steps == round(trial.training.steps / 3)


def test_fewer_tokens_than_a_step_are_refused(config):
    with pytest.raises(ConfigError, match="--tokens 100 is less than a step of 8 samples of 16 tokens"):
        trial_config(config, 8, 1e-3, 100)


@pytest.mark.parametrize(
    ("batch", "groups", "schedule", "local"),
    [(10, 1, "rotating", 2), (12, 2, "rotating", 6), (12, 3, "rotating", 4), (10, 1, "mixed", 5), (7, 1, "mixed", 7)],
)
def test_micro_batches_fit_the_domains(tiny_overrides, batch, groups, schedule, local):
    sizes = {"model.rre_layers": "0", "training.local_batch_size": "8", "training.global_batch_size": "48"}
    domains = {"data.domains_per_step": "2", "data.domain_groups": str(groups), "data.schedule": schedule}
    config = load_config(None, tiny_overrides | sizes | domains)

    trial = trial_config(config, batch, 1e-3, 10_000)

    check(trial)
    assert trial.training.local_batch_size == local


def test_a_batch_that_no_micro_batch_divides_is_refused_before_anything_is_prepared(tiny_overrides, tmp_path):
    config = load_config(None, tiny_overrides | {"model.rre_layers": "0", "data.domains_per_step": "2"})

    with pytest.raises(ConfigError, match=r"--batches has 7, which is not a multiple of data\.domains_per_step 2 × "):
        sweep(config, [4, 7], [1e-3, 2e-3], 2048, tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_nearly_equal_rates_have_separate_folders(config, tmp_path, fake_trials):
    assert sweep(config, [4, 8], [1e-3, 1.0000001e-3], 2048, tmp_path / "out", log=lambda text: None)
    assert len(fake_trials(tmp_path / "out")) == 4


def test_several_processes_are_refused_before_anything_is_saved(tiny_overrides, tmp_path):
    """The corrected command can then use the same --out."""
    config = load_config(None, tiny_overrides | {"model.rre_layers": "0", "parallelism.data_parallel": "2"})

    with pytest.raises(ConfigError, match="asks for 2 processes"):
        sweep(config, [4, 8], [1e-3, 2e-3], 2048, tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_a_sweep_reports_a_failed_trial_retries_only_it_and_fits_the_exponent(config, tmp_path, fake_trials):
    folder = tmp_path / "out"
    messages = []
    rates = [5e-4 * math.sqrt(2) ** i for i in range(6)]
    grid = ([4, 8, 16], rates, 2048, folder)
    name = f"batch00008_rate{rates[0]}"
    folder.mkdir()
    (folder / f"fail_{name}").touch()

    assert not sweep(config, *grid, processes=2, log=messages.append)
    assert f"batch-size: {name} failed: no luck" in "\n".join(messages)

    (folder / f"fail_{name}").unlink()
    assert sweep(config, *grid, log=messages.append)

    starts = fake_trials(folder)
    assert starts.pop(name) == 2
    assert len(starts) == 17
    assert set(starts.values()) == {1}
    result = json.loads((folder / RESULTS).read_text())
    assert result["exponent"] == pytest.approx(0.5)
    assert len(result["grid"]) == 18
    assert result["failed"] == {}
    assert (folder / PLOT).read_bytes().startswith(b"\x89PNG")
    assert "r = 0.50 ± 0.25" in "\n".join(messages)
    with pytest.raises(ConfigError, match=r"holds another search \(tokens is 2048, now 4096\)"):
        sweep(config, [4, 8, 16], rates, 4096, folder)


def test_a_batch_whose_trials_all_failed_is_an_error(config, tmp_path, fake_trials):
    (tmp_path / "out").mkdir()
    for rate in ("0.001", "0.002"):
        (tmp_path / "out" / f"fail_batch00008_rate{rate}").touch()

    with pytest.raises(TrainingError, match="no learning rate worked for batch 8"):
        sweep(config, [4, 8], [1e-3, 2e-3], 2048, tmp_path / "out", log=lambda text: None)


def test_a_sweep_of_one_batch_is_refused(config, tmp_path):
    with pytest.raises(ConfigError, match="at least two batches and two rates"):
        sweep(config, [4, 4], [1e-3, 2e-3], 2048, tmp_path / "other")
    assert not (tmp_path / "other").exists()
