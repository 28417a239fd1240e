"""The CPU kernels train the same model as the composed operators; invalid ids found on the device are errors."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from ascend_ops import native
from mindpangu.errors import RoutingError


def planned(model, loader):
    batches = loader.next_step().micro_batches
    return batches, [model.planner.plan(batch) for batch in batches]


@pytest.fixture
def compiler():
    try:
        native.library("grouped_ffn")
    except native.CompileError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("backend", "steps"),
    [("cpu", 6), pytest.param("cpu", 30, marks=pytest.mark.slow), pytest.param("ascend", 3, marks=pytest.mark.slow)],
)
def test_losses_and_gradients_agree(opened, tiny_overrides, backend, steps):
    """The kernels agree with the composed operators from the same weights, and over the first steps of two runs."""
    overrides = tiny_overrides | {"data.domains_per_step": "2", "lr_scheduler.learning_rate": "0.01"}
    kernels, kernel_model, kernel_loader = opened(overrides, backend)
    first = kernels.gradients(*planned(kernel_model, kernel_loader))  # compiles now, with the kernels
    composed, composed_model, composed_loader = opened(overrides, "composed")
    twin = composed.gradients(*planned(composed_model, composed_loader))

    assert first.loss == pytest.approx(twin.loss, rel=1e-5)
    for name, gradient in twin.dense.items():
        np.testing.assert_allclose(first.dense[name].asnumpy(), gradient.asnumpy(), atol=3e-6, err_msg=name)
    for key, gradients in composed.experts.gradients().items():
        for array, other_array in zip(kernels.experts.gradients()[key], gradients, strict=True):
            np.testing.assert_allclose(array, other_array, atol=3e-6)

    for _ in range(steps):
        step = planned(kernel_model, kernel_loader)
        result = kernels.run(*step, learning_rate=0.002)
        other = composed.run(*step, learning_rate=0.002)
        assert result.loss == pytest.approx(other.loss, rel=1e-5)
        assert result.traffic.activated == other.traffic.activated > 0
    kernels.finish()
    composed.finish()

    # copy the weights of the composed run into the other
    for name, parameter in composed_model.decoder.parameters.items():
        kernel_model.decoder.parameters[name].set_data(parameter)
    slots = range(len(composed_model.domains))
    for array, other_array in zip(kernel_model.store.lookup(slots), composed_model.store.lookup(slots), strict=True):
        array[...] = other_array
    step = planned(kernel_model, kernel_loader)
    assert kernels.gradients(*step).loss == pytest.approx(composed.gradients(*step).loss, rel=1e-5)


def test_the_step_refuses_what_a_compiled_form_flags(opened, tiny_overrides):
    """If tables change between the plan and the device, the composed operator counts the ids and the step raises."""
    step, model, loader = opened(tiny_overrides, "composed")
    batches, (plan,) = planned(model, loader)
    tables_LDV = plan.tables_LDV.copy()
    tables_LDV[1, 0, batches[0].tokens_BS[0, 3]] = model.store.group_size
    before = [slab.copy() for slab in model.store.lookup(range(len(model.domains)))]

    with pytest.raises(RoutingError, match=r"\d+ tokens had an id outside the routing tables"):
        step.run(batches, [dataclasses.replace(plan, tables_LDV=tables_LDV)], learning_rate=0.1)

    for array, other_array in zip(model.store.lookup(range(len(model.domains))), before, strict=True):
        np.testing.assert_array_equal(array, other_array)
    assert step.updates == 0


@pytest.mark.slow
def test_the_first_steps_of_the_main_job_agree(compiler, tmp_path):
    """30 steps of recipes/cpu_smoke.yaml on the real corpus, in two processes."""
    options = [
        *("--config", "recipes/cpu_smoke.yaml"),
        *("--training.output_dir", str(tmp_path)),
        *("--training.steps", "30"),
        *("--lr_scheduler.decay_steps", "150"),
    ]

    def mindpangu(*words, backend="cpu"):
        environment = {**os.environ, "MINDPANGU_OPS": backend}
        subprocess.run([sys.executable, "-m", "mindpangu", *words, *options], check=True, env=environment)

    for stage in (("tokenizer", "train"), ("data", "prepare"), ("routing", "build")):
        mindpangu(*stage, "--training.run_name", "cpu")
    shutil.copytree(tmp_path / "cpu", tmp_path / "composed")
    losses = {}
    for backend in ("cpu", "composed"):
        mindpangu("train", "--training.run_name", backend, backend=backend)
        lines = (tmp_path / backend / "metrics.jsonl").read_text().splitlines()
        losses[backend] = [json.loads(line)["loss"] for line in lines]

    assert len(losses["cpu"]) == 30
    np.testing.assert_allclose(losses["cpu"], losses["composed"], rtol=1e-5)
    assert losses["cpu"] != losses["composed"]  # equal bits would mean that both runs used one backend
