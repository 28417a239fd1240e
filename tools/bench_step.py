"""Times complete training steps on this machine's CPU, in fp32: against torch, the composed operators, and a limit.

    python tools/bench_step.py --against torch                     # about 12 minutes on two cores
    python tools/bench_step.py --quick                             # tiny models, to test the mechanics
    python tools/bench_step.py --against torch torch.compile composed --cases a c --json step.json --plot step.png
    python tools/bench_step.py --cases a --layers 4 8 16 32        # how the first step, with compilation, grows

Each stack trains in a process of its own, from the same weights on the same batches of random tokens. The processes
take turns: a few steps of one, a few of the next, and so on for several rounds. Their losses must agree.

    step_s        median over all rounds, without the first steps, which compile and allocate
    first_step_s  the first step of a process, with compilation
    gemm_limit_s  the step's matrix products alone, one after the other, by the oneDNN of MindSpore's wheel on all
                  threads, measured in the same run at the step's shapes
    × torch       step_s / torch's step_s (ratio_to_torch)
    limit         gemm_limit_s / step_s: 1 is as fast as the products allow; with --quick it means nothing, because
                  products of tiny matrices are slower alone than in a kernel with others

torch is not a requirement of the project: install it yourself to compare.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from step_bench.cases import CASES, Case, smaller
from step_bench.stacks import STACKS, Steps, processes
from tqdm import tqdm

from ascend_ops.bench import limits
from mindpangu.cli.programs import run_program
from mindpangu.errors import MindPanguError
from mindpangu.files import write_json

OURS = "mindpangu"
WARM_UP = 3  # steps that a process takes before it is timed, the first of which compiles
LARGEST_DIFFERENCE = 1e-3  # relative, of the losses of the first steps


@dataclass(frozen=True)
class Record:
    """The step of one case with one stack; see the docstring of the program."""

    case: str
    model: str
    shape: str
    stack: str
    step_s: float
    first_step_s: float
    tokens_per_s: float
    peak_rss_bytes: int
    ratio_to_torch: float | None
    gemm_limit_s: float | None


def main() -> None:
    arguments = parse_arguments()
    cases = [
        dataclasses.replace(case, layers=layers or case.layers)
        for case in CASES
        if case.name in arguments.cases
        for layers in arguments.layers
    ]
    if arguments.quick:
        cases = [smaller(case) for case in cases]
    rounds, steps = (2, 2) if arguments.quick else (arguments.rounds, 5)
    records: list[Record] = []
    print(f"{'case':<36} {'stack':<14} {'step s':>8} {'first s':>8} {'tokens/s':>9} {'GiB':>6} {'× torch':>8} limit")
    with tempfile.TemporaryDirectory() as folder, tqdm(total=len(cases) * rounds, unit="round", disable=None) as bar:
        for case in cases:
            for record in measure(case, [OURS, *arguments.against], rounds, steps, Path(folder), bar):
                with bar.external_write_mode():
                    print(line(record), flush=True)
                records.append(record)
            if arguments.json:  # after every case, so that a failing case does not lose the earlier ones
                write_json(arguments.json, [asdict(each) for each in records])
    if arguments.plot:
        from step_bench.plot import plot_records

        plot_records(records, arguments.plot)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", nargs="+", choices=STACKS[1:], default=[], help="stacks to compare with")
    parser.add_argument(
        "--cases", nargs="+", choices=[case.name for case in CASES], default=[case.name for case in CASES]
    )
    parser.add_argument("--layers", nargs="+", type=int, default=[0], help="layers instead of each case's own number")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of 5 steps per stack, at least 3 (default: 4)")
    parser.add_argument("--quick", action="store_true", help="tiny models and few steps, to test the mechanics")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the records as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw a plot (.png, .svg or .pdf)")
    arguments = parser.parse_args()
    for file in filter(None, (arguments.json, arguments.plot)):
        if not file.absolute().parent.is_dir() or file.is_dir():
            parser.error(f"{file} cannot be written: its folder does not exist, or it is a folder")
    if arguments.layers != [0] and min(arguments.layers) < 3:
        parser.error(
            f"--layers {min(arguments.layers)}: allowed is 3 or more, so that every case can have its two RRE layers"
        )
    if arguments.rounds < 3:
        parser.error(f"--rounds {arguments.rounds}: the median needs at least 3")
    return arguments


def measure(case: Case, stacks: Sequence[str], rounds: int, steps: int, folder: Path, bar: tqdm) -> Iterator[Record]:
    """Yields a record for each stack.

    Raises:
        MindPanguError: a process died, or the losses of the stacks differ.
    """
    bar.set_description(f"{case.name}: compiling")
    seconds: dict[str, list[float]] = {stack: [] for stack in stacks}
    limit_seconds: list[float] = []
    with processes(list(stacks), case, folder) as started:
        first = {process.stack: process.run(WARM_UP) for process in started}
        check_losses(case, {stack: each.losses for stack, each in first.items()})
        bar.set_description(case.name)
        last: dict[str, Steps] = {}
        for _ in range(rounds):
            for process in started:
                last[process.stack] = process.run(steps)
                seconds[process.stack] += last[process.stack].seconds
            limit_seconds.append(gemm_seconds(case))
            bar.update()
    medians = {stack: statistics.median(each) for stack, each in seconds.items()}
    limit = statistics.median(limit_seconds)
    for stack in stacks:
        yield Record(
            case=case.name,
            model=case.model,
            shape=case.shape,
            stack=stack,
            step_s=medians[stack],
            first_step_s=first[stack].seconds[0],
            tokens_per_s=case.tokens / medians[stack],
            peak_rss_bytes=last[stack].peak_rss_bytes,
            ratio_to_torch=medians[stack] / medians["torch"] if "torch" in medians else None,
            gemm_limit_s=limit if limit > 0 else None,
        )


def check_losses(case: Case, losses: dict[str, list[float]]) -> None:
    """Raises MindPanguError if a stack does not compute mindpangu's losses."""
    for stack, found in losses.items():
        for step, (loss, expected) in enumerate(zip(found, losses[OURS], strict=True)):
            if not abs(loss - expected) <= LARGEST_DIFFERENCE * abs(expected):
                raise MindPanguError(
                    f"case {case.name}: the loss of step {step + 1} is {loss:.6f} with {stack} and {expected:.6f} with "
                    f"{OURS}: they do not compute the same"
                )


def gemm_seconds(case: Case) -> float:
    """Returns the time of the step's matrix products; 0 if no compiler is installed."""
    total = 0.0
    for product, count in case.products():
        run = limits.product(product.transpose_a, product.transpose_b, product.m, product.n, product.k)
        if run is None:
            return 0.0
        run()
        repeats = max(1, round(5e8 / product.flops))
        started = time.perf_counter()
        for _ in range(repeats):
            run()
        total += (time.perf_counter() - started) / repeats * count
    return total


def line(record: Record) -> str:
    """Formats a record as a row of the table."""
    ratio = f"{record.ratio_to_torch:8.2f}" if record.ratio_to_torch else f"{'-':>8}"
    limit = f"{record.gemm_limit_s / record.step_s:6.2f}" if record.gemm_limit_s else f"{'-':>6}"
    name = f"{record.case} {record.shape}"
    return (
        f"{name:<36} {record.stack:<14} {record.step_s:8.3f} {record.first_step_s:8.1f} {record.tokens_per_s:9.0f} "
        f"{record.peak_rss_bytes / 2**30:6.2f} {ratio} {limit}"
    )


if __name__ == "__main__":
    run_program(main)
