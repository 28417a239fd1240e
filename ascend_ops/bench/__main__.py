"""Measures the operators: checked against the reference first, then timed beside composed, torch and a hard limit.

For every operator, at several shapes (PanGu-Σ's hidden size of 5,120 among them), forward and forward + backward:

    time       median of interleaved runs, the compiling one left out
    rate       GB/s of what has to be read and written at least, or GFLOP/s of what has to be multiplied
    ×composed  time of the composed form / time of this: above 1, this one is faster
    ×torch     the same for torch, where it is installed (any version; it is not a requirement)
    ×limit     time of the limit / time of this: 1 is as fast as the machine allows. The limit is measured in the same
               minute: a memcpy of as many bytes, a stream, or the dense network through the same GEMM
    backends   cpu is the C++ kernel, composed built-in MindSpore ops (NumPy for expert_adam). grouped_all_to_all has
               two more beside its fused dispatch: separate (rre_dispatch, then the exchange) and chunked (in 4 chunks)
    error      largest difference from the reference in float64, relative to the reference's largest value

Machines are shared and noisy: times of backends that ran in turn compare with one another, far less with those of
another day. A result that the reference refutes ends the benchmark with exit code 1.

    python -m ascend_ops.bench                                  # everything, 7 to 8 minutes on two cores
    python -m ascend_ops.bench --quick --op rre_dispatch
    python -m ascend_ops.bench --json bench.json --plot bench.png
"""

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
from tqdm import tqdm

from ascend_ops.bench import case as bench_case
from ascend_ops.bench import report
from ascend_ops.bench.case import Case, Prepared
from ascend_ops.bench.measure import measure


@dataclass(frozen=True)
class Effort:
    """Rounds of each direction of a case, and after how many seconds there are no more."""

    rounds: int
    seconds: float


FULL, QUICK = Effort(15, 6), Effort(5, 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 if a result is wrong."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    for path in filter(None, (arguments.json, arguments.plot)):
        if path.is_dir() or not path.absolute().parent.is_dir():
            parser.error(f"{path} cannot be written: it is a folder, or its folder does not exist")
    ms.set_context(mode=ms.PYNATIVE_MODE, device_target="CPU")
    wanted = arguments.op or bench_case.operators()
    cases = [case for operator in wanted for case in bench_case.cases_of(operator, arguments.quick)]
    print(report.machine(), flush=True)
    records, mistakes, operator = [], [], ""
    with tqdm(cases, unit="case", file=sys.stderr, disable=None) as bar:
        for case in bar:
            bar.set_description(f"{case.op} {case.shape}")
            if case.op != operator:
                operator = case.op
                _print(bar, f"\n{operator} (limit: {case.limit})\n{report.HEADER}")
            of_case, wrong = run(case, QUICK if arguments.quick else FULL, lambda text, bar=bar: _print(bar, text))
            records += of_case
            mistakes += wrong
            gc.collect()
    if arguments.json:
        arguments.json.write_text(json.dumps([record.as_dict() for record in records], indent=1) + "\n")
    if arguments.plot:
        from ascend_ops.bench.plot import draw

        draw(records, arguments.plot)
    for mistake in mistakes:
        print(mistake, file=sys.stderr)
    return 1 if mistakes else 0


def run(case: Case, effort: Effort, show) -> tuple[list[report.Record], list[str]]:
    """Checks and times one case; its arrays are free again afterwards. A wrong backend is not timed.

    Returns:
        The records, and a sentence for every wrong result.
    """
    prepared = case.prepare()
    try:
        return _run(case, prepared, effort, show)
    finally:
        prepared.close()


def _run(case, prepared, effort, show):
    records, mistakes = [], []
    for direction, runs in prepared.runs.items():
        errors = check(prepared, direction)
        wrong = [backend for backend, error in errors.items() if not error <= case.tolerance]
        mistakes += [
            f"WRONG RESULT: {case.op}, {case.shape}, {direction}, backend {backend}: error {errors[backend]:.1e} "
            f"relative to the reference, allowed is {case.tolerance:.0e}"
            for backend in wrong
        ]
        kept = {backend: function for backend, function in runs.items() if backend not in wrong}
        times = measure(kept, effort.rounds, effort.seconds)
        times = {backend: us / prepared.repeats for backend, us in times.items()}
        of_direction = report.records_of(case, direction, times, errors)
        for number, record in enumerate(of_direction):
            show(report.line(record, first=number == 0))
        records += of_direction
    return records, mistakes


def check(prepared: Prepared, direction: str) -> dict[str, float]:
    """The largest error of each backend."""
    expected, errors = prepared.expected(direction), {}
    for backend, function in prepared.runs[direction].items():
        if backend != "limit":
            prepared.reset()
            errors[backend] = bench_case.largest_error(function(), expected)
    return errors


def _print(bar: tqdm, text: str) -> None:
    """Above the progress bar."""
    with bar.external_write_mode():
        print(text, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ascend_ops.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer, smaller shapes and fewer rounds: under a minute")
    operators = bench_case.operators()
    parser.add_argument(
        "--op", action="append", choices=operators, metavar="NAME", help=f"only this one (repeatable): {operators}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also writes flat records, one for each line")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draws a figure (.png, .svg or .pdf)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
