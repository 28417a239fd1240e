"""Trains the RRE model and its dense twin with several seeds, and compares their held-out loss by domain.

The twin has one expert per RRE layer, shared by all domains: `model.rre_layers 0` at the same widths and depth, on the
same batches, for as many steps. Both see the same tokens; the RRE model has more parameters, the twin sees more tokens
per parameter. Takes about two times the number of seeds the time of the main job.

    .venv/bin/python tools/compare_dense_twin.py                                   # 3 seeds of recipes/cpu_smoke.yaml
    .venv/bin/python tools/compare_dense_twin.py --seeds 5 --training.steps 400    # overrides as everywhere
"""

import argparse
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from comparison.intervals import MOST_SEEDS, Interval
from comparison.runs import Runs

VARIANTS = {"rre": [], "dense": ["--model.rre_layers", "0"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="recipes/cpu_smoke.yaml")
    seeds = range(2, MOST_SEEDS + 1)
    parser.add_argument("--seeds", type=int, default=3, choices=seeds, metavar=f"2…{MOST_SEEDS}", help="default: 3")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments, words = parser.parse_known_args()
    trainings = Runs(arguments.config, words)
    losses: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    runs = [(variant, seed) for seed in range(arguments.seeds) for variant in VARIANTS]
    for variant, seed in tqdm(runs, unit="run", disable=None):
        losses[variant].append(run(trainings, variant, seed))
    differences = compare(losses["rre"], losses["dense"])
    print(format_table(losses, differences))
    if arguments.json:
        arguments.json.write_text(json.dumps({"losses": losses, "differences": differences}, indent=1))


def run(trainings: Runs, variant: str, seed: int) -> dict[str, float]:
    """Trains one model in a run folder of its own, skipping what is done; returns held-out loss by domain."""
    name = f"twin_{variant}_{seed}"
    # the data's seed stays: all models of one seed see the same batches, and all seeds the same held-out text
    seeded = ["--training.seed", str(seed), "--checkpoint.save_steps", "1000000", "--checkpoint.keep_last", "1"]
    trainings.run(name, *VARIANTS[variant], *seeded)
    return trainings.losses(name)


def compare(rre: list[dict[str, float]], dense: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """domain → mean of (RRE − dense) over seeds, in nats, and the half width of its 95 % interval (paired t)."""
    differences = {}
    for domain in [*rre[0], "mean"]:
        values = [_loss(a, domain) - _loss(b, domain) for a, b in zip(rre, dense, strict=True)]
        differences[domain] = asdict(Interval.of(values))
    return differences


def format_table(losses: dict[str, list[dict[str, float]]], differences: dict[str, dict[str, float]]) -> str:
    lines = [f"{'domain':>12} {'RRE ppl':>9} {'dense ppl':>10} {'difference (nats, 95 % interval)':>34}"]
    for domain, difference in differences.items():
        rre, dense = (math.exp(np.mean([_loss(each, domain) for each in losses[kind]])) for kind in ("rre", "dense"))
        lines.append(f"{domain:>12} {rre:>9.1f} {dense:>10.1f} {Interval(**difference)!s:>34}")
    return "\n".join(lines)


def _loss(losses: dict[str, float], domain: str) -> float:
    return float(np.mean(list(losses.values()))) if domain == "mean" else losses[domain]


if __name__ == "__main__":
    main()
