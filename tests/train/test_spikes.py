"""Steps that are not finite or that spike are skipped."""

import math

from mindpangu.train.spikes import SpikeGuard


def accept_steady_steps(guard, count):
    for i in range(count):
        assert guard.reason_to_skip({"loss": 5 + 0.1 * (i % 2), "global_norm": 1.0 + 0.01 * (i % 3)}) is None


def test_non_finite_steps_are_always_skipped():
    guard = SpikeGuard(sigma=0, window=8)

    assert guard.reason_to_skip({"loss": math.nan, "global_norm": 1.0}) == "loss is nan"
    assert guard.reason_to_skip({"loss": 1.0, "global_norm": math.inf}) == "global_norm is inf"
    assert guard.state() == {"loss": [], "global_norm": []}


def test_a_spike_is_skipped_and_not_recorded():
    guard = SpikeGuard(sigma=6, window=16)
    accept_steady_steps(guard, 7)
    assert guard.reason_to_skip({"loss": 50.0, "global_norm": 1.0}) is None  # the window is not yet half full

    guard = SpikeGuard(sigma=6, window=16)
    accept_steady_steps(guard, 8)
    recorded = guard.state()

    assert "global_norm 9 is above" in guard.reason_to_skip({"loss": 5.0, "global_norm": 9.0})
    assert guard.state() == recorded
    accept_steady_steps(guard, 20)


def test_sigma_scales_the_limit_and_zero_removes_it():
    def skips(sigma):
        guard = SpikeGuard(sigma, window=4)
        for loss in (1.0, 3.0, 1.0, 3.0):  # mean 2, standard deviation 1
            guard.history["loss"].append(loss)
            guard.history["global_norm"].append(1.0)
        return guard.reason_to_skip({"loss": 2.75, "global_norm": 1.0}) is not None

    assert skips(0.5)
    assert not skips(1.0)
    assert not skips(0.0)


def test_a_loaded_state_restores_the_decision():
    guard = SpikeGuard(sigma=6, window=16)
    accept_steady_steps(guard, 12)
    other = SpikeGuard(sigma=6, window=16)

    other.load_state(guard.state())

    values = {"loss": 5.7, "global_norm": 1.0}
    assert other.reason_to_skip(values) == guard.reason_to_skip(values) is not None


def test_the_limit_is_the_mean_plus_sigma_standard_deviations():
    """Mean 3 and standard deviation 2: with σ = 1.5 the limit is 6."""
    guard = SpikeGuard(sigma=1.5, window=4)
    for value in (1.0, 5.0, 1.0, 5.0):
        assert guard.reason_to_skip({"loss": 1.0, "global_norm": value}) is None

    assert guard.reason_to_skip({"loss": 1.0, "global_norm": 6.001}) is not None
    assert guard.reason_to_skip({"loss": 1.0, "global_norm": 5.999}) is None


def test_a_loaded_window_stays_as_long_as_it_is():
    guard = SpikeGuard(sigma=6, window=4)
    guard.load_state({"loss": [1.0] * 9, "global_norm": [1.0] * 9})

    for _ in range(2):
        guard.reason_to_skip({"loss": 1.0, "global_norm": 1.0})

    assert guard.state() == {"loss": [1.0] * 4, "global_norm": [1.0] * 4}
