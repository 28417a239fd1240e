"""tools/bench_step.py: its cases, its check of the losses, and its records. No test depends on the times."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT / "tools"))

from step_bench.cases import CASES, smaller  # noqa: E402
from step_bench.stacks import processes  # noqa: E402

from mindpangu.errors import MindPanguError  # noqa: E402

KEYS = "case model shape stack step_s first_step_s tokens_per_s peak_rss_bytes ratio_to_torch gemm_limit_s".split()


def bench(*arguments):
    command = [sys.executable, str(PROJECT / "tools" / "bench_step.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def bench_step(load_tool):
    return load_tool("bench_step")


@pytest.mark.parametrize(("name", "gflop"), [("a", 67), ("b", 231), ("c", 36)])
def test_the_matrix_products_of_a_step_are_counted_once(name, gflop):
    """By hand: causal attention counts half, and the dense half of a model with experts is computed twice."""
    (case,) = (case for case in CASES if case.name == name)

    assert sum(product.flops * count for product, count in case.products()) / 1e9 == pytest.approx(gflop, rel=0.01)


def test_batches_repeat_and_every_token_counts():
    case = smaller(CASES[2])
    first, second = (case.batches() for _ in range(2))

    for domain in (0, 1, 2, 3, 0):
        batch = next(first)
        other = next(second)
        assert batch.domain_of_slot == (domain,)
        assert batch.loss_mask_BS.all()
        assert (batch.tokens_BS == other.tokens_BS).all()


def test_different_losses_are_refused(bench_step):
    bench_step.check_losses(CASES[0], {"mindpangu": [9.0, 8.0], "torch": [9.0001, 8.0001]})

    with pytest.raises(MindPanguError, match=r"case a: the loss of step 2 is 8\.100000 with torch and 8\.000000"):
        bench_step.check_losses(CASES[0], {"mindpangu": [9.0, 8.0], "torch": [9.0, 8.1]})
    with pytest.raises(MindPanguError, match="step 1 is nan"):
        bench_step.check_losses(CASES[0], {"mindpangu": [9.0], "torch": [float("nan")]})


def test_a_run_writes_a_record_for_each_stack(tmp_path):
    stacks = ["mindpangu", "composed"]
    if importlib.util.find_spec("torch"):
        stacks.append("torch")

    done = bench(
        "--quick", "--cases", "c", "--against", *stacks[1:], "--json", tmp_path / "a.json", "--plot", tmp_path / "a.png"
    )

    assert done.returncode == 0, done.stderr
    records = json.loads((tmp_path / "a.json").read_text())
    assert [record["stack"] for record in records] == stacks
    for record in records:
        assert list(record) == KEYS
        assert min(record["step_s"], record["first_step_s"], record["peak_rss_bytes"]) > 0
        assert record["tokens_per_s"] == pytest.approx(32 / record["step_s"])
        assert (record["ratio_to_torch"] is None) == ("torch" not in stacks)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_the_losses_of_fifty_steps_agree_with_the_composed_operators(name, tmp_path):
    (case,) = (case for case in CASES if case.name == name)

    with processes(["mindpangu", "composed"], case, tmp_path) as started:
        kernels, composed = (process.run(50).losses for process in started)

    assert kernels == pytest.approx(composed, rel=1e-5)
    assert kernels != composed


@pytest.mark.parametrize(
    "arguments", [["--rounds", "2"], ["--layers", "4", "2"], ["--json", "nowhere/a.json"], ["--against", "jax"]]
)
def test_mistakes_are_refused_before_anything_is_measured(arguments):
    done = bench(*arguments)

    assert done.returncode == 2
    assert "Traceback" not in done.stderr
