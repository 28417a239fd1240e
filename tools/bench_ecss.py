"""Measures ECSS against plain heterogeneous training, in PanGu-Σ's layout: 8 RRE layers × 40 domains × 16 experts.

    python tools/bench_ecss.py --quick                          # minutes, narrow
    python tools/bench_ecss.py --json ecss.json --plot ecss.png # all cases; needs 20 GB of memory and most of an hour

Cases:
    sigma     both host modes, staging through buffers of their own, from 1k to 64k tokens a step; 4 domains active.
              Twice: over a link at the speed of memory, and over one that is slowed down, as links are beside an NPU.
              The ratio is measured. A linear model of bytes, Adam rows and FLOPs, fitted to the ends of the curve in
              the same run, predicts the points between.
    active    2 domains active, of 4 and of 40: the time follows the active experts, not all of them.
    mapped    a store of three times the memory that a control group allows.
    overlap   a link slowed down to a set speed: what of it hides behind the computation.

Everything is measured on this machine's processors: a "device" is memory of its own here, and nothing is said of an
NPU's time.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from ecss_bench.apart import run_apart
from ecss_bench.bounds import bounds
from ecss_bench.curve import crossing, sigma_curve, sigma_point
from ecss_bench.overlap import overlap_cases
from ecss_bench.plot import draw
from ecss_bench.records import Record
from ecss_bench.scaling import active_cases, mapped_case
from ecss_bench.workload import LARGEST_MICRO_BATCH, SEQ_LENGTH, Workload

from mindpangu.errors import MindPanguError

CASES = ("sigma", "active", "mapped", "overlap")
SMALLEST = 4 * SEQ_LENGTH  # case sigma has 4 domains a step, each with whole samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="narrow models and few steps: mechanics, not figures")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="default: all")
    parser.add_argument("--hidden", type=int, default=0, help="width of case sigma (default: 64; quick: 32)")
    parser.add_argument("--layers", type=int, default=0, help="layers of case sigma, 8 of them RRE (default: 9)")
    parser.add_argument("--tokens", type=int, nargs="+", help="tokens a step of case sigma")
    parser.add_argument("--link", type=float, default=0.25, help="GB/s of case sigma's second curve (%(default)s)")
    parser.add_argument("--paced", type=float, nargs="+", default=[], help="GB/s of case overlap (default: two speeds)")
    parser.add_argument("--folder", type=Path, help="where the mapped store lies (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="write the records here")
    parser.add_argument("--plot", type=Path, help="draw the ratio over tokens a step here")
    arguments = parser.parse_args()
    problem = wrong(arguments)
    if problem:
        parser.error(problem)
    records: list[Record] = []
    try:
        for case in run(arguments):
            records += case
            if arguments.json:  # after every case: one that fails must not lose those before it
                arguments.json.write_text(json.dumps([asdict(each) for each in records], indent=1) + "\n")
    except MindPanguError as error:
        sys.exit(f"bench_ecss: {error}")
    print("bounds" + " (of narrow models and few steps: mechanics, not figures)" * arguments.quick)
    for bound in bounds(records):
        log(str(bound))


def wrong(arguments: argparse.Namespace) -> str | None:
    """What cannot be measured with these arguments, said before anything is."""
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
                f"--tokens {tokens}: a step has a multiple of {SMALLEST} tokens (a sample of each domain), and above "
                f"{LARGEST_MICRO_BATCH} a multiple of that (its micro-batches)"
            )
    return None


def run(arguments: argparse.Namespace) -> Iterator[list[Record]]:
    """Yields the records of one case after the other."""
    quick = arguments.quick
    rounds, steps = (2, 2) if quick else (3, 3)
    if "sigma" in arguments.cases:
        shape = arguments.hidden or (32 if quick else 64), arguments.layers or 9
        tokens = sorted(arguments.tokens or ([1024, 2048, 4096] if quick else [2**power for power in range(10, 17)]))
        speeds = (None, arguments.link)
        print(f"sigma: 5,120 experts of width {shape[0]}, 4 of 40 domains a step", flush=True)
        points = []
        for count in tokens:
            points.append(run_apart(sigma_point, *shape, count, speeds, rounds, steps))
            for speed, point in zip(speeds, points[-1], strict=True):
                full, few = point.records
                link = f"{speed} GB/s" if speed else "memory"
                log(f"{count} tokens a step, link of {link}: host_full {full.step_s:.3f} s, "
                    f"host_ecss {few.step_s:.3f} s, ratio {few.ratio_to_host_full:.2f}")  # fmt: skip
        for curve in map(sigma_curve, zip(*points, strict=True)):
            log(f"{curve[0].case}:")
            for each in curve:
                if not each.calibrates:
                    share, moving = each.predicted_s / each.step_s, each.moving_share
                    log(f"linear model, {each.mode} at {each.tokens_per_step} tokens: {share:.2f} × measured, "
                        f"{moving:.0%} of it transfer and update")  # fmt: skip
            log(crossing(curve))
            yield curve
        if arguments.plot:  # of the slow link: there transfers dominate
            draw(curve, arguments.plot)
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


def log(text: str) -> None:
    print(f"  {text}", flush=True)


if __name__ == "__main__":
    main()
