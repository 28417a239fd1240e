"""Compares a second round of training with plain continuation for the same number of steps.

For every seed, trains a model for one pass over the training split (round 1), and then half as long again in two
ways: plainly, on the next batches of the data stream; or in a second round, on half of round 1's batches, drawn with
p = softmax(loss) (`mindpangu tiny rounds`). Both share round 1, its optimizer state and the learning rate of every
step. The forward pass over round 1 that gives the losses is not counted; it costs two thirds of the second round's
steps. Every step has all domains, so that batches are hard or easy only because of their text. Prints the held-out loss
of both and the paired differences with 95 % intervals. All runs are kept, so a stopped comparison can be resumed.

    .venv/bin/python tools/compare_tiny_rounds.py                    # 3 seeds, about 40 minutes on two cores
    .venv/bin/python tools/compare_tiny_rounds.py --quick            # checks that it runs; 2 minutes
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from comparison.command_line import comparison_parser, read_arguments
from comparison.intervals import Interval, paired_differences, with_mean
from comparison.runs import Runs

from mindpangu.cli.programs import run_program
from mindpangu.files import read_json, write_json

RATE = 0.5
PARTS = 8
STEPS = 1400  # of round 1: one pass over the largest domain's training split, which has 2,800 samples
QUICK_STEPS = 40
FIRST = "round 1"
PLAIN = "plain continuation"
SAMPLED = "second round"

Losses = Mapping[str, Mapping[str, float]]
"""FIRST, PLAIN or SAMPLED → domain → held-out loss in nats per token."""


def main() -> None:
    parser = comparison_parser(__doc__, "recipes/cpu_tiny.yaml", default="3, with --quick 1")
    parser.add_argument("--quick", action="store_true", help="train for a few steps only")
    arguments, overrides = read_arguments(
        parser, ("training.steps", "data.domains_per_step", "lr_scheduler.decay_steps")
    )

    seeds = arguments.seeds or (1 if arguments.quick else 3)
    steps = QUICK_STEPS if arguments.quick else STEPS
    measured = [
        measure(arguments.config, overrides, seed, steps) for seed in tqdm(range(seeds), unit="seed", disable=None)
    ]

    print(format_table(measured, steps))
    if arguments.json:
        figures = {"command": sys.argv, "steps": steps, "rate": RATE, "parts": PARTS, "seeds": measured}
        intervals = {domain: asdict(interval) for domain, interval in differences(measured).items()}
        write_json(arguments.json, figures | {"differences": intervals})


def measure(config: str, overrides: Mapping[str, str], seed: int, steps: int) -> Losses:
    """Trains one seed both ways and returns the losses, or reads them if they are already measured."""
    total_steps = steps + round(RATE * steps)
    # data.seed is the same everywhere, so that all seeds see the same batches and the same held-out text
    keys = {
        "training.seed": seed,
        "data.domains_per_step": 4,
        "checkpoint.save_steps": steps,
        "checkpoint.keep_last": 3,
        "lr_scheduler.decay_steps": total_steps,
    }
    runs = Runs(config, {**keys, **overrides})
    name = f"tiny_rounds_{steps}_{seed}"
    result_file = runs.result_file(name)
    if result_file.is_current():
        return read_json(result_file.path)["losses"]

    root = runs.run(name, {"training.steps": total_steps})
    losses = {PLAIN: runs.losses(name)}

    end_of_first = str(root / "checkpoint" / f"iteration_{steps:08d}")
    runs.run(name, {"training.steps": total_steps}, stages=(["evaluate", "--checkpoint", end_of_first],))
    losses[FIRST] = runs.losses(name)

    verb = ["tiny", "rounds", "--checkpoint", end_of_first, "--resume", "--schedule", "continue"]
    verb += ["--rounds", "2", "--rate", str(RATE), "--parts", str(PARTS)]
    runs.run(f"{name}_sampled", {"training.steps": steps}, stages=(verb, ["evaluate"]))
    losses[SAMPLED] = runs.losses(f"{name}_sampled")

    result_file.write({"losses": losses})
    return losses


def differences(measured: Sequence[Losses]) -> dict[str, Interval]:
    """Returns the interval of (second round − plain continuation) for each domain and "mean"; none for one seed."""
    return paired_differences([losses[SAMPLED] for losses in measured], [losses[PLAIN] for losses in measured])


def format_table(measured: Sequence[Losses], steps: int) -> str:
    """Formats a Markdown table with a row per domain and one for their mean."""
    intervals = differences(measured)
    lines = [
        f"held-out loss (nats per token), {len(measured)} seed{'s' * (len(measured) > 1)}; round 1 of {steps} steps, "
        f"then {round(RATE * steps)}",
        "",
        "| domain | after round 1 | plain continuation | second round | second round − plain, 95 % interval |",
        "|---|---|---|---|---|",
    ]
    for name in [*measured[0][PLAIN], "mean"]:
        values = [np.mean([with_mean(losses[run])[name] for losses in measured]) for run in (FIRST, PLAIN, SAMPLED)]
        cells = [f"{value:.3f}" for value in values]
        lines.append(f"| {name} | {' | '.join(cells)} | {intervals.get(name, '')} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
