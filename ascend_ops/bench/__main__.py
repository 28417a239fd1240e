"""Measures the operators: first checks them against the reference, then times them against composed, torch and a limit.

For every operator, at several shapes (PanGu-Σ's hidden size of 5,120 among them), forward and forward + backward:

    time       median of interleaved runs, without the first, which compiles
    rate       GB/s for the bytes that must be read and written, or GFLOP/s for the multiplications that are needed
    ×composed  time of the composed form / time of this backend: above 1, this backend is faster
    ×torch     the same for torch, if it is installed (any version; it is not a requirement)
    ×limit     time of the limit / time of this backend: 1 is as fast as the machine allows. The limit is measured in
               the same minute: a memcpy of as many bytes, a stream, or the dense network through the same GEMM
    backends   cpu is the C++ kernel, composed is built-in MindSpore ops (NumPy for expert_adam). grouped_all_to_all has
               two more in addition to its fused dispatch: separate (rre_dispatch, then the exchange) and chunked (in 4
               chunks)
    error      largest difference from the reference in float64, relative to the reference's largest value

Machines are shared and noisy: compare times of backends that ran in turn, not times of different days. If a result
differs from the reference, the benchmark reports it and ends with exit code 1.

    python -m ascend_ops.bench                                  # everything, 7 to 8 minutes on two cores
    python -m ascend_ops.bench --quick --op rre_dispatch
    python -m ascend_ops.bench --json bench.json --plot bench.png
"""

import argparse
import functools
import gc
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ascend_ops.bench import case as bench_case
from ascend_ops.bench import report
from ascend_ops.bench.case import Case, Prepared
from ascend_ops.bench.measure import measure
from ascend_ops.files import write_text
from ascend_ops.native import OperatorError


@dataclass(frozen=True)
class Effort:
    """Effort per direction of a case: a number of rounds, or fewer if they take longer than `seconds`."""

    rounds: int
    seconds: float


PLOT_FORMATS = (".png", ".svg", ".pdf")
FULL = Effort(rounds=15, seconds=6)
QUICK = Effort(rounds=5, seconds=1)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns the exit code: 1 if a result is wrong."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    for path in filter(None, (arguments.json, arguments.plot)):
        if not path.absolute().parent.is_dir() or (path.exists() and not path.is_file()):
            parser.error(f"{path} cannot be written: it is no regular file, or its folder does not exist")
    if arguments.plot and arguments.plot.suffix not in PLOT_FORMATS:
        parser.error(f"--plot {arguments.plot}: the name must end with one of {', '.join(PLOT_FORMATS)}")
    try:
        return _main(arguments)
    except (OperatorError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _main(arguments: argparse.Namespace) -> int:
    os.environ.setdefault("GLOG_v", "3")  # hides MindSpore's warnings; it reads this when it is imported
    import mindspore as ms

    ms.set_context(mode=ms.PYNATIVE_MODE, device_target="CPU")
    effort = QUICK if arguments.quick else FULL
    wanted = arguments.op or bench_case.operators()
    cases = [case for operator in wanted for case in bench_case.cases_of(operator, arguments.quick)]
    print(report.machine(), flush=True)
    records: list[report.Record] = []
    mistakes: list[str] = []
    operator = ""
    with tqdm(cases, unit="case", file=sys.stderr, disable=None) as bar:
        for case in bar:
            bar.set_description(f"{case.op} {case.shape}")
            if case.op != operator:
                operator = case.op
                _print(bar, f"\n{operator} (limit: {case.limit})\n{report.HEADER}")
            new_records, new_mistakes = run(case, effort, functools.partial(_print, bar))
            records += new_records
            mistakes += new_mistakes
            gc.collect()
    if arguments.json:
        write_text(arguments.json, json.dumps([record.as_dict() for record in records], indent=1) + "\n")
    if arguments.plot:
        from ascend_ops.bench.plot import plot_records

        plot_records(records, arguments.plot)
    for mistake in mistakes:
        print(mistake, file=sys.stderr)
    return 1 if mistakes else 0


def run(case: Case, effort: Effort, show: Callable[[str], None]) -> tuple[list[report.Record], list[str]]:
    """Checks and times one case, then frees its arrays. A backend with a wrong result is not timed.

    Returns:
        The records, and one sentence per wrong result.
    """
    prepared = case.prepare()
    try:
        return _run(case, prepared, effort, show)
    finally:
        prepared.close()


def _run(
    case: Case, prepared: Prepared, effort: Effort, show: Callable[[str], None]
) -> tuple[list[report.Record], list[str]]:
    records: list[report.Record] = []
    mistakes: list[str] = []
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
        new_records = report.records_of(case, direction, times, errors)
        for index, record in enumerate(new_records):
            show(report.line(record, first=index == 0))
        records += new_records
    return records, mistakes


def check(prepared: Prepared, direction: str) -> dict[str, float]:
    """Returns the largest error of each backend."""
    expected = prepared.expected(direction)
    errors = {}
    for backend, function in prepared.runs[direction].items():
        if backend != "limit":
            prepared.reset()
            errors[backend] = bench_case.largest_error(function() or (), expected)
    return errors


def _print(bar: tqdm, text: str) -> None:
    """Prints above the progress bar."""
    with bar.external_write_mode():
        print(text, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ascend_ops.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="Use fewer, smaller shapes and fewer rounds (under a minute)."
    )
    operators = bench_case.operators()
    parser.add_argument(
        "--op",
        action="append",
        choices=operators,
        metavar="NAME",
        help=f"Measure only this operator; may be repeated. One of {', '.join(operators)}.",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="Also write the records as JSON, one per row of the table."
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="Also draw a plot (.png, .svg or .pdf).")
    return parser


if __name__ == "__main__":
    sys.exit(main())
