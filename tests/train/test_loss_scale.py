"""The loss scale: its rule, the steps that it skips, and its state in a resumed run."""

import math
import shutil

import numpy as np
import pytest

from mindpangu.config import load_config
from mindpangu.data import Loader
from mindpangu.errors import TrainingError
from mindpangu.train.loss_scale import LossScale
from mindpangu.train.metrics import read_metrics
from mindpangu.train.run import open_run, set_device, train
from mindpangu.train.step import TrainStep


def values(scale, overflows):
    """Returns the scale of each step, and of the step after them."""
    values = [scale.value]
    for overflow in overflows:
        scale.update(overflow)
        values.append(scale.value)
    return values


def test_an_overflow_halves_the_scale_and_a_window_without_overflow_doubles_it():
    scale = LossScale(64, window=3)
    assert values(scale, [False] * 7) == [64, 64, 64, 128, 128, 128, 256, 256]
    assert values(scale, [True]) == [256, 128]
    assert values(scale, [False, False, True, False, False, False]) == [128, 128, 128, 64, 64, 64, 128]


def test_the_scale_stays_between_1_and_2_to_the_32():
    assert values(LossScale(2, window=1), [True, True, True, False]) == [2, 1, 1, 1, 2]
    assert values(LossScale(2**31, window=1), [False, False, True]) == [2**31, 2**32, 2**32, 2**31]


def test_update_returns_whether_the_scale_was_lowered():
    scale = LossScale(2, window=1)
    assert [scale.update(True), scale.update(True), scale.update(False)] == [True, False, False]


def test_a_loaded_state_continues_from_the_saved_one():
    one = LossScale(64, window=5)
    values(one, [True, False, False, False])
    other = LossScale(7, window=5)

    other.load_state(one.state())

    assert values(other, [False, False]) == values(one, [False, False]) == [32, 32, 64]


def test_without_fp16_the_scale_is_always_1():
    scale = LossScale.from_config(load_config(None, {"training.loss_scale": "8", "training.loss_scale_window": "1"}))
    assert values(scale, [False, True, False]) == [1.0] * 4
    assert not scale.update(True)
    half = LossScale.from_config(load_config(None, {"training.loss_scale": "8", "context.precision": "fp16"}))
    assert (half.value, half.window) == (8.0, 1000)


def fp16(overrides, **changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    config = load_config(None, overrides | {"context.precision": "fp16"} | changes)
    set_device(config)
    return open_run(config)


def everything(step):
    """Copies everything that a step may change, except the loss scale."""
    step.finish()
    store = step.model.store
    arrays = {name: parameter.asnumpy().copy() for name, parameter in step.decoder.parameters.items()}
    for group in (step.optimizer.moment1, step.optimizer.moment2):
        arrays |= {parameter.name: parameter.asnumpy().copy() for parameter in group.values()}
    for kind, group in (("weight", store.weights), ("m", store.moment1), ("v", store.moment2)):
        for layer, domains in enumerate(group):
            for domain, slab in enumerate(domains):
                arrays |= {f"{kind}.{layer}.{domain}.{name}": array.copy() for name, array in slab.items()}
    return arrays | {"counts": store.step_counts.copy(), "updates": np.array(step.updates)}, step.guard.state()


def test_an_overflow_changes_nothing_but_the_scale(tiny_overrides):
    run = fp16(tiny_overrides, training__loss_scale=str(2**32))
    run.model.store.initialize()
    step = TrainStep(run.model)
    loader = Loader(run.shards, run.model.domains, run.config)
    batches = loader.next_step().micro_batches
    plans = [run.model.planner.plan(batch) for batch in batches]
    before, spikes = everything(step)

    expected_scale = 2.0**32
    result = step.run(batches, plans, 1e-3)
    while result.skipped:
        assert (result.loss_scale, result.loss_scale_lowered) == (expected_scale, True)
        assert result.skipped.endswith(f"the loss scale goes from {expected_scale:g} to {expected_scale / 2:g}")
        assert not math.isfinite(result.global_norm)
        after, spikes_after = everything(step)
        assert spikes_after == spikes
        for name, array in before.items():
            np.testing.assert_array_equal(after[name], array, err_msg=name)
        expected_scale /= 2
        assert step.loss_scale.value == expected_scale >= 65536
        overflowed_loss = result.loss
        result = step.run(batches, plans, 1e-3)

    assert expected_scale < 2**32
    assert (result.loss_scale, result.loss_scale_lowered, step.updates) == (expected_scale, False, 1)
    assert overflowed_loss == result.loss  # fp32, and scaled by powers of two
    assert len(step.guard.state()["loss"]) == 1
    after, _ = everything(step)
    assert all((after[name] != array).any() for name, array in before.items() if name.endswith("down.weight"))


@pytest.mark.slow
def test_a_step_does_not_depend_on_the_scale(tiny_overrides):
    """Reported values, clipping, and the update do not depend on the scale (powers of two lose no bits)."""
    results = []
    states = []
    for scale in ("1024", "65536"):
        run = fp16(tiny_overrides, training__loss_scale=scale, training__max_norm="0.5")
        run.model.store.initialize()
        step = TrainStep(run.model)
        loader = Loader(run.shards, run.model.domains, run.config)
        batches = loader.next_step().micro_batches
        plans = [run.model.planner.plan(batch) for batch in batches]
        results.append(step.run(batches, plans, 1e-3))
        states.append(everything(step)[0])

    one, other = results
    assert (one.loss_scale, other.loss_scale) == (1024, 65536)
    assert (one.loss, one.domain_loss) == (other.loss, other.domain_loss)
    assert 0.5 < one.global_norm == pytest.approx(other.global_norm, rel=1e-4)
    for name, array in states[0].items():
        if name.startswith(("adam_m.", "m.")):  # 0.1 times the clipped gradient
            assert np.linalg.norm(array - states[1][name]) <= 1e-2 * np.linalg.norm(array) + 1e-7, name


def records(folder):
    """Returns step → [loss, norm, loss scale, overflow, reason for skipping]."""
    keys = ("loss", "global_norm", "loss_scale", "overflow", "skipped")
    return {record["step"]: [record[key] for key in keys] for record in read_metrics(folder / "metrics.jsonl")}


@pytest.mark.slow
def test_stop_and_resume_equals_one_run(tiny_run, tmp_path):
    """The run is stopped after overflows and in the middle of a window."""
    overrides, folder = tiny_run
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    schedule = {
        "training__loss_scale": str(2**30),
        "training__loss_scale_window": "4",
        "training__max_skipped_steps": "1",
        "lr_scheduler__decay_steps": "40",
    }
    train(fp16(overrides, training__steps="24", **schedule), log=lambda text: None)
    expected = records(folder)
    scales = [scale for _, _, scale, _, _ in expected.values()]
    first = next(step for step, (*_, skipped) in expected.items() if skipped is None)
    assert 4 < first < 14
    assert scales[:first] == [2.0 ** (30 - i) for i in range(first)]
    assert all(overflow for _, _, _, overflow, _ in list(expected.values())[: first - 1])
    assert scales[first - 1 : first + 4] == [scales[first - 1]] * 4 + [2 * scales[first - 1]]
    assert f"loss_scale: {scales[0]:g}," in (folder / "log" / "rank_0" / "info.log").read_text()

    stop = str(first + 1)
    train(fp16(overrides, training__run_name="other", training__steps=stop, **schedule), log=lambda text: None)
    train(fp16(overrides, training__run_name="other", training__steps="24", **schedule), True, log=lambda text: None)

    assert records(other) == expected
    newest = [each / "checkpoint" / "iteration_00000024" for each in (folder, other)]
    files = sorted(path.relative_to(newest[0]) for path in newest[0].rglob("*.safetensors"))
    assert len(files) > 20
    for path in files:
        assert (newest[0] / path).read_bytes() == (newest[1] / path).read_bytes(), path


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_only_overflows_at_a_scale_of_1_end_the_training(tiny_run):
    overrides, folder = tiny_run
    run = fp16(
        overrides,
        training__loss_scale="8",
        training__max_skipped_steps="2",
        training__steps="30",
        lr_scheduler__learning_rate="1e30",
        training__max_norm="1e30",
    )

    with pytest.raises(TrainingError, match="2 steps in a row were skipped"):
        train(run, log=lambda text: None)

    skipped = [scale for _, _, scale, _, reason in records(folder).values() if reason]
    assert skipped == [8, 4, 2, 1, 1]
