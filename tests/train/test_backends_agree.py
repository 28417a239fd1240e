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


def relative_distance(array, expected):
    """Returns |array − expected| / |expected|, with Euclidean norms."""
    return np.linalg.norm(array - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("model", "backend", "steps"),
    [
        ("sigma", "cpu", 6),
        ("pi", "cpu", 6),
        pytest.param("sigma", "cpu", 50, marks=pytest.mark.slow),
        pytest.param("pi", "cpu", 50, marks=pytest.mark.slow),
        pytest.param("sigma", "ascend", 3, marks=pytest.mark.slow),
    ],
)
def test_losses_and_gradients_agree(opened, tiny_overrides, pangu_pi, model, backend, steps):
    """The kernels agree with the composed operators from the same weights, and over the first steps of two runs."""
    overrides = tiny_overrides | {"data.domains_per_step": "2"} | (pangu_pi if model == "pi" else {})
    kernels, kernel_model, kernel_loader = opened(overrides, backend)
    first = kernels.gradients(*planned(kernel_model, kernel_loader))  # compiles now, with the kernels
    composed, composed_model, composed_loader = opened(overrides, "composed")
    twin = composed.gradients(*planned(composed_model, composed_loader))

    assert first.loss == pytest.approx(twin.loss, rel=1e-5)
    for name, gradient in twin.dense.items():
        if not name.endswith("key.bias"):  # 0 in theory: softmax does not change if all scores grow alike
            assert relative_distance(first.dense[name].asnumpy(), gradient.asnumpy()) < 1e-5, name
    for key, gradients in composed.experts.gradients().items():
        for array, expected in zip(kernels.experts.gradients()[key], gradients, strict=True):
            assert relative_distance(array, expected) < 1e-5

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


@pytest.fixture(scope="module")
def main_job(tmp_path_factory):
    """main_job(name, steps, backend, cores) trains recipes/cpu_smoke.yaml on real text; returns the run folder."""
    output = tmp_path_factory.mktemp("main_job")

    def mindpangu(*words, name, steps=50, backend="cpu", cores=None):
        options = [
            *("--config", "recipes/cpu_smoke.yaml"),
            *("--training.output_dir", str(output)),
            *("--training.run_name", name),
            *("--training.steps", str(steps)),
            *("--lr_scheduler.decay_steps", "400"),
        ]
        command = [sys.executable, "-m", "mindpangu", *words, *options]
        limited = ["taskset", "-c", cores] if cores else []
        subprocess.run([*limited, *command], check=True, env={**os.environ, "MINDPANGU_OPS": backend})

    for stage in (("tokenizer", "train"), ("data", "prepare"), ("routing", "build")):
        mindpangu(*stage, name="prepared")

    def train(name, **options):
        shutil.copytree(output / "prepared", output / name)
        mindpangu("train", name=name, **options)
        return output / name

    return train


def losses_of(run_folder):
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.slow
def test_the_first_steps_of_the_main_job_agree(compiler, main_job):
    kernels = losses_of(main_job("kernels"))
    composed = losses_of(main_job("composed", backend="composed"))

    assert len(kernels) == 50
    np.testing.assert_allclose(kernels, composed, rtol=1e-5)
    assert kernels != composed  # equal bits would mean that both runs used one backend


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.skipif(shutil.which("taskset") is None, reason="taskset is not installed")
def test_one_core_computes_the_bits_of_two(compiler, main_job):
    """So a run can move to a machine with another number of cores, and a result can be repeated there."""
    first, second = sorted(os.sched_getaffinity(0))[:2]
    two = main_job("two_cores", steps=20, cores=f"{first},{second}")
    again = main_job("again", steps=20, cores=f"{first},{second}")
    one = main_job("one_core", steps=20, cores=str(first))

    assert losses_of(one) == losses_of(two) == losses_of(again)
    compared = 0
    for file in (two / "checkpoint").rglob("*.safetensors"):
        for other in (one, again):
            assert (other / file.relative_to(two)).read_bytes() == file.read_bytes(), file.name
        compared += 1
    assert compared > 128  # one file for each expert, and those of the dense parameters
