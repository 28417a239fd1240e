"""Two rounds of training beside the same compute of plain continuation.

For every seed a model is trained for a pass over the training split (round 1) and then half as long again, in two ways
that share round 1, its optimizer state and the learning rate of every step: plainly, with what the data stream brings
next; or in a second round, on the half of round 1's batches that p = softmax(loss) draws (`mindpangu tiny rounds`).
The losses that it takes, a forward pass over round 1, are not counted: two thirds of the second round's steps.
Held-out loss of both, and the paired differences with their 95 % intervals. Every step has all domains, so that batches
are hard or easy by their text alone. Every run is kept, so a comparison that was stopped goes on where it was.

    .venv/bin/python tools/compare_tiny_rounds.py                    # 3 seeds, some 40 minutes on two cores
    .venv/bin/python tools/compare_tiny_rounds.py --quick            # does it run at all? 2 minutes
"""

import json
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

from mindpangu.files import read_json

RATE, PARTS = 0.5, 8
PASS, QUICK = 1400, 40  # steps of round 1; 2,800 samples are the largest domain's training split
FIRST, PLAIN, SAMPLED = "round 1", "plain continuation", "second round"

Losses = Mapping[str, Mapping[str, float]]
"""FIRST, PLAIN or SAMPLED → domain → held-out loss in nats a token."""


def main() -> None:
    parser = comparison_parser(__doc__, "recipes/cpu_tiny.yaml", default="3, with --quick 1")
    parser.add_argument("--quick", action="store_true", help="a few steps")
    arguments, overrides = read_arguments(
        parser, ("training.steps", "data.domains_per_step", "lr_scheduler.decay_steps")
    )
    seeds = arguments.seeds or (1 if arguments.quick else 3)
    steps = QUICK if arguments.quick else PASS
    measured = [
        measure(arguments.config, overrides, seed, steps) for seed in tqdm(range(seeds), unit="seed", disable=None)
    ]
    print(format_table(measured, steps))
    if arguments.json:
        figures = {"command": sys.argv, "steps": steps, "rate": RATE, "parts": PARTS, "seeds": measured}
        found = {domain: asdict(each) for domain, each in differences(measured).items()}
        arguments.json.write_text(json.dumps(figures | {"differences": found}, indent=1) + "\n")


def measure(config: str, overrides: Mapping[str, str], seed: int, steps: int) -> Losses:
    """Trains one seed both ways; what was measured before is read."""
    both = steps + round(RATE * steps)
    # the data's seed stays: all seeds see the same batches and the same held-out text
    keys = {
        "training.seed": seed,
        "data.domains_per_step": 4,
        "checkpoint.save_steps": steps,
        "checkpoint.keep_last": 3,
        "lr_scheduler.decay_steps": both,
    }
    runs = Runs(config, {**keys, **overrides})
    name = f"tiny_rounds_{steps}_{seed}"
    kept = runs.measured(name)
    if kept.is_current():
        return read_json(kept.path)["losses"]
    root = runs.run(name, {"training.steps": both})
    losses = {PLAIN: runs.losses(name)}
    end_of_first = str(root / "checkpoint" / f"iteration_{steps:08d}")
    runs.run(name, {"training.steps": both}, stages=(["evaluate", "--checkpoint", end_of_first],))
    losses[FIRST] = runs.losses(name)
    verb = ["tiny", "rounds", "--checkpoint", end_of_first, "--resume", "--schedule", "continue"]
    verb += ["--rounds", "2", "--rate", str(RATE), "--parts", str(PARTS)]
    runs.run(f"{name}_sampled", {"training.steps": steps}, stages=(verb, ["evaluate"]))
    losses[SAMPLED] = runs.losses(f"{name}_sampled")
    kept.write({"losses": losses})
    return losses


def differences(measured: Sequence[Losses]) -> dict[str, Interval]:
    """Domain, or "mean" of the domains → loss of the second round − of plain continuation; none of a single seed."""
    return paired_differences(*([each[way] for each in measured] for way in (SAMPLED, PLAIN)))


def format_table(measured: Sequence[Losses], steps: int) -> str:
    """Markdown: a row for each domain and their mean."""
    found = differences(measured)
    lines = [
        f"held-out loss (nats a token), {len(measured)} seed{'s' * (len(measured) > 1)}; round 1 of {steps} steps, "
        f"then {round(RATE * steps)}",
        "",
        "| domain | after round 1 | plain continuation | second round | second round − plain, 95 % interval |",
        "|---|---|---|---|---|",
    ]
    for name in [*measured[0][PLAIN], "mean"]:
        values = [np.mean([with_mean(each[way])[name] for each in measured]) for way in (FIRST, PLAIN, SAMPLED)]
        cells = [f"{value:.3f}" for value in values]
        lines.append(f"| {name} | {' | '.join(cells)} | {found.get(name, '')} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
