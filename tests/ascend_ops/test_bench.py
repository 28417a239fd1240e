"""The benchmark: its records, its plot and its refusal of wrong results. No times: machines are shared."""

import json
import math

import numpy as np
import pytest

from ascend_ops.bench import __main__ as program
from ascend_ops.bench import case as bench_case
from ascend_ops.bench import limits, report, runs
from ascend_ops.bench.__main__ import main
from ascend_ops.bench.measure import FEWEST_ROUNDS, measure
from ascend_ops.grouped_ffn import reference as ffn_reference
from ascend_ops.native import OperatorError
from ascend_ops.rre_combine import bench as combine_bench

KEYS = "op shape dtype backend direction us gbytes_per_s gflop_per_s vs_composed vs_torch vs_limit max_error".split()


@pytest.fixture(autouse=True)
def _tiny_shape(monkeypatch):
    monkeypatch.setattr(combine_bench, "QUICK_SHAPES", ((48, 32, 4, 2),))


def test_the_bench_writes_records_and_a_figure(tmp_path, capsys):
    records_file = tmp_path / "bench.json"
    plot_file = tmp_path / "bench.png"

    exit_code = main(["--quick", "--op", "rre_combine", "--json", str(records_file), "--plot", str(plot_file)])

    assert exit_code == 0
    records = json.loads(records_file.read_text())
    assert plot_file.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "T48 H32 E4 D2" in printed
    assert "last-level cache" in printed.splitlines()[0]

    available = {
        "composed": True,
        "cpu": "cpu" in runs.implementations("rre_combine"),
        "torch": runs.torch_or_none() is not None,
        "limit": limits.copy(8) is not None,
    }
    expected = {name for name, there in available.items() if there}
    for direction, moved_arrays in (("forward", 3), ("forward+backward", 5)):
        of_direction = {r["backend"]: r for r in records if r["direction"] == direction}
        assert set(of_direction) == expected
        for backend, record in of_direction.items():
            assert list(record) == KEYS
            assert (record["op"], record["shape"], record["dtype"]) == ("rre_combine", "T48 H32 E4 D2", "float32")
            assert record["us"] > 0
            assert record["gflop_per_s"] is None
            assert math.isclose(record["gbytes_per_s"], moved_arrays * 4 * 48 * 32 / record["us"] / 1e3)
            for other in ("composed", "torch", "limit"):
                if other in of_direction:
                    assert math.isclose(record[f"vs_{other}"], of_direction[other]["us"] / record["us"])
                else:
                    assert record[f"vs_{other}"] is None
            assert (record["max_error"] is None) == (backend == "limit")
            assert backend == "limit" or record["max_error"] < 1e-6
    assert len(records) == 2 * len(expected)


@pytest.mark.parametrize("wrong", [1e-3, np.inf])
def test_a_wrong_result_ends_with_exit_code_1(monkeypatch, tmp_path, capsys, wrong):
    correct = combine_bench._bound
    monkeypatch.setattr(
        combine_bench,
        "_bound",
        lambda module: _disturbed(correct(module), wrong if "composed" in module.__name__ else 0),
    )

    file = tmp_path / "bench.json"
    assert main(["--quick", "--op", "rre_combine", "--json", str(file)]) == 1
    complaint = capsys.readouterr().err
    assert "WRONG RESULT: rre_combine, T48 H32 E4 D2, forward, backend composed: error" in complaint
    assert "backend cpu" not in complaint
    backends = {record["backend"] for record in json.loads(file.read_text())}
    assert "composed" not in backends, "a wrong backend has no time"


def _disturbed(function, addend):
    def disturbed(rows_TH, positions_T, residual_TH):
        return (function(rows_TH, positions_T, residual_TH)[0] + addend,)

    return disturbed


def test_without_kernels_and_torch_only_composed_remains(monkeypatch, tmp_path):
    composed = {"composed": runs.implementations("rre_combine")["composed"]}
    monkeypatch.setattr(runs, "implementations", lambda operator: composed)
    monkeypatch.setattr(runs, "torch_or_none", lambda: None)
    monkeypatch.setattr(limits, "_library", lambda: None)

    file = tmp_path / "bench.json"
    assert main(["--quick", "--op", "rre_combine", "--json", str(file), "--plot", str(tmp_path / "bench.png")]) == 0
    records = json.loads(file.read_text())
    assert [record["backend"] for record in records] == ["composed", "composed"]
    assert all(record["vs_torch"] is None and record["vs_limit"] is None for record in records)


def test_every_operator_with_a_bench_is_found():
    operators = bench_case.operators()

    assert {"rre_dispatch", "rre_combine", "rre_regroup", "grouped_ffn", "expert_adam"} <= set(operators)
    for operator in operators:
        for quick in (False, True):
            cases = list(bench_case.cases_of(operator, quick))
            assert cases or "cpu" not in runs.implementations(operator)
            assert all(case.op == operator and case.work for case in cases)


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_path_that_cannot_be_written_is_refused_before_anything_is_measured(option, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--quick", option, str(tmp_path / "nowhere" / "file")])
    assert "cannot be written" in capsys.readouterr().err


def test_an_unknown_operator_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--op", "nothing"])
    assert "rre_dispatch" in capsys.readouterr().err


def test_runs_take_turns_and_are_warmed_up_each_time():
    order = []

    times = measure({name: lambda name=name: order.append(name) for name in "abc"}, rounds=4, seconds=60)

    assert "".join(order) == "abc" + "aabbcc" + "bbccaa" + "ccaabb" + "aabbcc"
    assert all(us >= 0 for us in times.values())
    order.clear()
    measure({"a": lambda: order.append("a")}, rounds=100, seconds=0)
    assert len(order) == 1 + 2 * FEWEST_ROUNDS


def test_the_error_is_relative_to_the_largest_value():
    expected = np.array([0.0, 200.0])

    assert bench_case.largest_error([np.array([1.0, 200.0])], [expected]) == 0.005
    assert math.isnan(bench_case.largest_error([np.array([np.nan, 200.0])], [expected]))
    assert bench_case.largest_error([np.zeros(3)], [expected]) == math.inf


def test_the_dense_limit_computes_the_network():
    """A limit that computes less than the network would be meaningless."""
    if not limits.dense_chain(1, 1, 1):
        pytest.skip("no compiler or no oneDNN")
    rows = 300  # more than a block
    chain = limits.DenseChain(rows, 24, 40)
    chain.forward_and_backward()
    slabs = [weight.astype(np.float64)[None] for weight in chain.weights]
    doubles = (chain.dout.astype(np.float64), chain.rows.astype(np.float64), np.array([rows]), slabs)
    drows_TH, dslabs = ffn_reference.grouped_ffn_backward(*doubles)
    results = [chain.out, chain.drows, *(gradient[None] for gradient in chain.gradients)]

    expected = [ffn_reference.grouped_ffn(*doubles[1:]), drows_TH, *dslabs]
    assert bench_case.largest_error(results, expected) < 1e-5


def test_the_table_lines_up():
    record = report.Record("op", "T1", "float32", "cpu", "forward", 12.0, 3.0, None, 1.0, None, 0.5, 0.0)
    assert len(report.line(record, True)) == len(report.line(record, False)) == len(report.HEADER)


@pytest.mark.parametrize("words", [["--plot", "a.xyz"], ["--json", "/dev/full"], ["--json", "nowhere/a.json"]])
def test_results_that_could_not_be_written_are_refused_at_once(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SystemExit, match="2"):
        main(words)


@pytest.mark.parametrize("error", [OperatorError("no compiler"), OSError(28, "full", "a.json")])
def test_a_mistake_is_one_message(monkeypatch, capsys, error):
    def fail(_):
        raise error

    monkeypatch.setattr(program, "_main", fail)

    assert main([]) == 1
    assert capsys.readouterr().err == f"error: {error}\n"
