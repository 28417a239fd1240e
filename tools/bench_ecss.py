"""Compares ECSS with plain heterogeneous training, in PanGu-Σ's layout: 8 RRE layers × 40 domains × 16 experts.

    python tools/bench_ecss.py --quick                          # minutes, with narrow models
    python tools/bench_ecss.py --json ecss.json --plot ecss.png # all cases; needs 20 GB of memory and most of an hour

Cases:
    sigma     measures the ratio of both host modes, with staging buffers, from 1k to 64k tokens per step and with 4
              active domains: once over a link at the speed of memory, and once over a slow link, as next to an NPU. A
              linear model of bytes, Adam rows, and FLOPs is fitted to the ends of the curve in the same run and
              predicts the points in between.
    active    measures 2 active domains out of 4 and out of 40: time depends on the active experts, not on all experts.
    mapped    measures a store of three times the memory that a control group allows.
    overlap   measures how much of a slow link's time hides behind computation.

Everything runs on this machine's CPU: a "device" is a separate memory buffer. The figures say nothing about an NPU.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from ecss_bench.bounds import bounds
from ecss_bench.child_process import run_in_child_process
from ecss_bench.curve import crossing, sigma_curve, sigma_point
from ecss_bench.overlap import overlap_cases
from ecss_bench.plot import plot_records
from ecss_bench.records import Record
from ecss_bench.scaling import active_cases, mapped_case
from ecss_bench.workload import LARGEST_MICRO_BATCH, SEQ_LENGTH, Workload

from mindpangu.cli.programs import run_program
from mindpangu.errors import MindPanguError
from mindpangu.files import write_json

CASES = ("sigma", "active", "mapped", "overlap")
SMALLEST = 4 * SEQ_LENGTH  # case sigma has 4 domains per step, each with at least one sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="use narrow models and few steps, to test the mechanics")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="default: all")
    parser.add_argument("--hidden", type=int, default=0, help="width of case sigma (default: 64; quick: 32)")
    parser.add_argument("--layers", type=int, default=0, help="layers of case sigma, 8 of them RRE (default: 9)")
    parser.add_argument("--tokens", type=int, nargs="+", help="tokens per step of case sigma")
    parser.add_argument(
        "--link", type=float, default=0.25, help="GB/s of case sigma's slow link (default: %(default)s)"
    )
    parser.add_argument("--paced", type=float, nargs="+", default=[], help="GB/s of case overlap (default: two speeds)")
    parser.add_argument("--folder", type=Path, help="folder of the mapped store (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="file to write the records to")
    parser.add_argument("--plot", type=Path, help="file to plot the ratio over tokens per step to")
    arguments = parser.parse_args()

    problem = find_problem(arguments)
    if problem:
        parser.error(problem)

    records: list[Record] = []
    try:
        for case in run(arguments):
            records += case
            if arguments.json:  # after every case, so that a failing case does not lose the earlier ones
                write_json(arguments.json, [asdict(each) for each in records])
    except MindPanguError as error:
        sys.exit(f"bench_ecss: {error}")

    print("bounds" + " (not meaningful with narrow models and few steps)" * arguments.quick)
    for bound in bounds(records):
        log(str(bound))


def find_problem(arguments: argparse.Namespace) -> str | None:
    """Returns what is wrong with the arguments, before anything is measured."""
    for file in filter(None, (arguments.json, arguments.plot)):
        if not file.parent.is_dir():
            return f"there is no folder {file.parent}"
        if file.is_dir():
            return f"{file} is a folder"
    if arguments.folder and not arguments.folder.is_dir():
        return f"there is no folder {arguments.folder}"
    if arguments.plot and "sigma" not in arguments.cases:
        return "--plot draws case sigma; add it to --cases"
    if min([arguments.link, *arguments.paced]) <= 0:
        return "--link and --paced are speeds in GB/s, above 0"
    for tokens in arguments.tokens or ():
        if tokens <= 0 or tokens % SMALLEST or (tokens > LARGEST_MICRO_BATCH and tokens % LARGEST_MICRO_BATCH):
            return (
                f"--tokens {tokens}: a step has a multiple of {SMALLEST} tokens (one sample per domain), and above "
                f"{LARGEST_MICRO_BATCH} a multiple of that (its micro-batches)"
            )
    return None


def run(arguments: argparse.Namespace) -> Iterator[list[Record]]:
    """Runs the selected cases and yields the records of each."""
    quick = arguments.quick
    rounds = 2 if quick else 3
    steps = 2 if quick else 3
    if "sigma" in arguments.cases:
        yield from run_sigma(arguments, rounds, steps)
    if "active" in arguments.cases:
        print("active")
        yield active_cases(32 if quick else 144, 512, rounds, steps, log)
    if "mapped" in arguments.cases:
        print("mapped")
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            yield mapped_case(96 if quick else 128, 1024, steps, Path(folder), log)
    if "overlap" in arguments.cases:
        print("overlap")
        workload = Workload(32 if quick else 64, 12, domains=8)
        for speed in arguments.paced or ((0.02,) if quick else (0.1, 0.05)):
            yield overlap_cases(workload, 1024, speed, rounds, steps, log)


def run_sigma(arguments: argparse.Namespace, rounds: int, steps: int) -> Iterator[list[Record]]:
    """Yields the records of case sigma, one curve per link, and plots the curve of the slow link."""
    quick = arguments.quick
    hidden = arguments.hidden or (32 if quick else 64)
    layers = arguments.layers or 9
    tokens = sorted(arguments.tokens or ([1024, 2048, 4096] if quick else [2**power for power in range(10, 17)]))
    speeds = (None, arguments.link)
    print(f"sigma: 5,120 experts of width {hidden}, 4 of 40 domains per step", flush=True)

    points = []
    for count in tokens:
        points.append(run_in_child_process(sigma_point, hidden, layers, count, speeds, rounds, steps))
        for speed, point in zip(speeds, points[-1], strict=True):
            full, ecss = point.records
            link = f"{speed} GB/s" if speed else "memory"
            times = f"host_full {full.step_s:.3f} s, host_ecss {ecss.step_s:.3f} s"
            log(f"{count} tokens per step, link of {link}: {times}, ratio {ecss.ratio_to_host_full:.2f}")

    for curve in map(sigma_curve, zip(*points, strict=True)):
        log(f"{curve[0].case}:")
        for each in curve:
            if not each.calibrates and each.predicted_s is not None:
                name = f"linear model, {each.mode} at {each.tokens_per_step} tokens"
                ratio = each.predicted_s / each.step_s
                log(f"{name}: {ratio:.2f} × measured, {each.moving_share:.0%} of it transfer and update")
        log(crossing(curve))
        yield curve

    if arguments.plot:  # transfers dominate over the slow link
        plot_records(curve, arguments.plot)


def log(text: str) -> None:
    """Prints an indented line at once."""
    print(f"  {text}", flush=True)


if __name__ == "__main__":
    run_program(main)
