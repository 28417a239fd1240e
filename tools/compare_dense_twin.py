"""Trains the RRE model and its dense twin with several seeds, and compares their held-out loss by domain.

The twin has one expert per RRE layer, shared by all domains: `model.rre_layers 0` with the same widths and depth,
trained on the same batches for as many steps. Both see the same tokens; the RRE model has more parameters, and the twin
sees more tokens per parameter. Takes about as long as two main jobs per seed.

    .venv/bin/python tools/compare_dense_twin.py                                   # 3 seeds of recipes/cpu_smoke.yaml
    .venv/bin/python tools/compare_dense_twin.py --seeds 5 --training.steps 400    # overrides as usual
"""

import math
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
from mindpangu.files import write_json

VARIANTS: dict[str, dict[str, object]] = {"rre": {}, "dense": {"model.rre_layers": 0}}


def main() -> None:
    parser = comparison_parser(__doc__, "recipes/cpu_smoke.yaml", default="3", fewest_seeds=2)
    arguments, overrides = read_arguments(parser)
    runs = Runs(arguments.config, overrides)
    losses: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    trainings = [(variant, seed) for seed in range(arguments.seeds or 3) for variant in VARIANTS]
    for variant, seed in tqdm(trainings, unit="run", disable=None):
        losses[variant].append(train(runs, variant, seed))
    differences = paired_differences(losses["rre"], losses["dense"])
    print(format_table(losses, differences))
    if arguments.json:
        intervals = {domain: asdict(difference) for domain, difference in differences.items()}
        write_json(arguments.json, {"losses": losses, "differences": intervals})


def train(runs: Runs, variant: str, seed: int) -> dict[str, float]:
    """Trains one model in its own run folder, skipping finished stages; returns the held-out loss by domain."""
    name = f"twin_{variant}_{seed}"
    # data.seed is the same everywhere, so that all models see the same batches and the same held-out text
    seeded = {"training.seed": seed, "checkpoint.save_steps": 1_000_000, "checkpoint.keep_last": 1}
    runs.run(name, VARIANTS[variant] | seeded)
    return runs.losses(name)


def format_table(losses: Mapping[str, Sequence[Mapping[str, float]]], differences: Mapping[str, Interval]) -> str:
    """Formats a table with a row per domain and one for their mean; differences are RRE − dense."""
    lines = [f"{'domain':>12} {'RRE ppl':>9} {'dense ppl':>10} {'difference (nats, 95 % interval)':>34}"]
    for domain, difference in differences.items():
        rre, dense = (math.exp(np.mean([with_mean(each)[domain] for each in losses[kind]])) for kind in VARIANTS)
        lines.append(f"{domain:>12} {rre:>9.1f} {dense:>10.1f} {difference!s:>34}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
