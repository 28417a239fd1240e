"""Measures of a trial against NumPy."""

from mindpangu.tiny.trials.measures import final_loss, training_speed


def test_the_final_loss_is_the_mean_of_the_finite_losses_of_the_last_tenth():
    losses = [9.0] * 27 + [2.0, None, 3.0]  # None: a step that was skipped because its loss was not finite

    assert final_loss([{"loss": loss} for loss in losses]) == 2.5
    assert final_loss([{"loss": 4.0}, {"loss": 1.0}]) == 1.0
    assert final_loss([{"loss": None}]) is None


def test_the_speed_is_the_median_without_the_first_steps():
    records = [{"tokens_per_s": speed} for speed in (1, 1, 1, 1, 1, 70, 90, 80, 500, 60, 85)]

    assert training_speed(records) == 82.5
    assert training_speed(records[:1]) == 1
    assert training_speed(records[3:7]) == 80  # two of four are left out
