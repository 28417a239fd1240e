"""tools/bench_ecss.py: its linear model, slow link, and records. No test depends on the figures."""

import json
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

from ecss_bench.bounds import bounds  # noqa: E402
from ecss_bench.curve import PAPER_RATIO, crossing  # noqa: E402
from ecss_bench.linear_model import LinearModel, Work, calibrate  # noqa: E402
from ecss_bench.records import Record  # noqa: E402
from ecss_bench.workload import PacedLink  # noqa: E402


def test_the_linear_model_recovers_its_coefficients():
    truth = LinearModel(constant=0.1, per_byte=2e-10, per_parameter=5e-9, per_flop=3e-11)
    works = [Work(8.0 * rows, rows, flops) for rows in (1e7, 1e8) for flops in (1e9, 5e10)]
    seconds = [truth.seconds(work) for work in works]

    model = calibrate(works, seconds, byte_seconds=2e-10 * 7, parameter_seconds=5e-9 * 7)  # only their ratio matters

    for name in ("constant", "per_byte", "per_parameter", "per_flop"):
        assert getattr(model, name) == pytest.approx(getattr(truth, name), rel=1e-6)
    unseen = Work(8 * 4e7, 4e7, 2e10)
    assert model.seconds(unseen) == pytest.approx(truth.seconds(unseen))


def test_no_coefficient_is_negative():
    works = [Work(1e6, 1e6, 1e9), Work(1e7, 1e7, 2e9), Work(1e6, 1e6, 4e9)]

    model = calibrate(works, [1.0, 1.0, 0.5], 1e-9, 1e-9)

    assert min(model.constant, model.per_byte, model.per_parameter, model.per_flop) >= 0


def test_the_crossing_is_interpolated_between_its_neighbours():
    def record(mode, tokens, seconds, predicted):
        return Record("sigma", mode, 640, 64, tokens, 1, seconds, 0, 0, 0, 0, predicted_s=predicted)

    records = [record("host_ecss", tokens, 1.0, 1.0) for tokens in (1024, 4096, 16384)]
    times = ((1024, 8.3, 7.0), (4096, 4.3, 6.5), (16384, 2.0, 6.4))
    records += [record("host_full", *time) for time in times]

    text = crossing(records)

    # the middle ratio is the middle of the logarithmic axis; the model stays above the paper's ratio
    assert text == f"{PAPER_RATIO} × is crossed at 2048 tokens per step as measured, at none by the linear model"


def test_a_paced_link_copies_at_its_speed():
    link = PacedLink(1, gigabytes_per_s=0.01)
    source = np.arange(250_000, dtype=np.float32)
    target = np.zeros(250_000, np.float32)

    started = time.perf_counter()
    copied = link.copy([(target, source)])
    seconds = time.perf_counter() - started

    assert copied == 1_000_000
    assert seconds >= 0.1
    np.testing.assert_array_equal(target, source)


def test_a_missing_folder_for_a_result_is_refused_before_anything_is_measured(tmp_path):
    for option in ("--json", "--plot"):
        done = bench(option, str(tmp_path / "missing" / "file"))
        assert done.returncode == 2
        assert f"there is no folder {tmp_path / 'missing'}" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", "300"], "--tokens 300: a step has a multiple of 1024 tokens"),
        (["--tokens", "69632"], "above 65536 a multiple of that"),
        (["--tokens", "0"], "--tokens 0"),
        (["--link", "0"], "above 0"),
        (["--paced", "0"], "above 0"),
        (["--folder", "/missing/folder"], "there is no folder /missing/folder"),
        (["--cases", "sigma", "--hidden", "-8"], "model.hidden_size"),
    ],
)
def test_a_wrong_option_is_one_message(options, message):
    done = bench("--quick", *options)

    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def sigma(mode, tokens, step_s, predicted_s, bytes_moved, **others):
    return Record(
        case="sigma",
        mode=mode,
        experts_total=640,
        experts_active=64,
        tokens_per_step=tokens,
        tokens_per_s=1,
        step_s=step_s,
        wait_s=0,
        bytes_to_device=bytes_moved,
        bytes_to_host=bytes_moved,
        bytes_planned=2 * bytes_moved,
        experts_updated=64 if mode == "host_ecss" else 640,
        predicted_s=predicted_s,
        **others,
    )


def test_bounds_are_computed_from_the_records():
    records = [
        sigma("host_full", 1024, 10.0, 10.0, 1000, moving_share=0.95, calibrates=True),
        sigma("host_ecss", 1024, 1.0, 1.0, 100, moving_share=0.5, calibrates=True),
        sigma("host_full", 2048, 12.0, 10.0, 1000, moving_share=0.85),
        sigma("host_ecss", 2048, 3.0, 2.0, 102, moving_share=0.3),
    ]

    bound_of_text = {bound.text: bound for bound in bounds(records)}

    assert [bound.holds for bound in bound_of_text.values()] == [False, False, True, False, True]
    assert bound_of_text["sigma: relative error of bytes_to_host / host_full's against ρ"].value == pytest.approx(0.02)
    error = bound_of_text["sigma: relative error of the predicted ratio between the fitted points"].value
    assert error == pytest.approx(0.25)
    assert bound_of_text["sigma: ratio to host_full if transfer and update dominate ([1024] tokens)"].value == 10


def bench(*options):
    return subprocess.run([sys.executable, str(TOOLS / "bench_ecss.py"), *options], capture_output=True, text=True)


@pytest.mark.slow
def test_the_quick_bench_writes_records_and_a_plot(tmp_path):
    done = bench("--quick", "--json", str(tmp_path / "records.json"), "--plot", str(tmp_path / "plot.png"))

    assert done.returncode == 0, done.stderr
    assert "6.3 × is crossed at" in done.stdout
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    records = [Record(**each) for each in json.loads((tmp_path / "records.json").read_text())]
    names = "case mode experts_total experts_active tokens_per_step tokens_per_s step_s wait_s bytes_to_device"
    names += " bytes_to_host bytes_planned ratio_to_host_full"
    assert [field.name for field in fields(Record)][:12] == names.split()
    assert {each.case.split()[0].strip(",") for each in records} >= {"sigma", "active", "overlap"}
    sigma = [each for each in records if each.case.startswith("sigma")]
    curve = {(each.case, each.mode, each.tokens_per_step): each for each in sigma}
    assert len(curve) == len(sigma) == 2 * 2 * 3
    for (case, mode, tokens), ecss in curve.items():
        if mode != "host_ecss":
            continue
        full = curve[case, "host_full", tokens]
        ratio = ecss.experts_active / ecss.experts_total
        assert ratio == 0.1
        for each in (ecss, full):
            assert each.bytes_to_device + each.bytes_to_host == each.bytes_planned
        for name in ("bytes_to_device", "bytes_to_host", "experts_updated"):
            assert getattr(ecss, name) == pytest.approx(ratio * getattr(full, name), rel=0.01)
        assert ecss.ratio_to_host_full == pytest.approx(full.step_s / ecss.step_s)
    active = [each for each in records if each.case.startswith("active")]
    assert [(each.experts_active, each.experts_total) for each in active] == [(256, 512), (256, 5120)]
