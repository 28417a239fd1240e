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
import subprocess
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindpangu.config import load_config

# Two-sided 95 % quantiles of Student's t for 1 … 9 degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

VARIANTS = {"rre": [], "dense": ["--model.rre_layers", "0"]}
STAGES = (["tokenizer", "train"], ["data", "prepare"], ["routing", "build"], ["train"], ["evaluate"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="recipes/cpu_smoke.yaml")
    parser.add_argument("--seeds", type=int, default=3, choices=range(2, 11), metavar="2…10", help="default: 3")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments, words = parser.parse_known_args()
    overrides = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    losses: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    runs = [(variant, seed) for seed in range(arguments.seeds) for variant in VARIANTS]
    for variant, seed in tqdm(runs, unit="run", disable=None):
        losses[variant].append(run(arguments.config, overrides, variant, seed))
    differences = compare(losses["rre"], losses["dense"])
    print(format_table(losses, differences))
    if arguments.json:
        arguments.json.write_text(json.dumps({"losses": losses, "differences": differences}, indent=1))


def run(config: str, overrides: list[str], variant: str, seed: int) -> dict[str, float]:
    """Trains one model in a run folder of its own, skipping what is done; returns held-out loss by domain."""
    name = f"twin_{variant}_{seed}"
    settings = ["--config", config, *overrides, *VARIANTS[variant]]
    # the data's seed stays: all models of one seed see the same batches, and all seeds the same held-out text
    settings += ["--training.seed", str(seed), "--training.run_name", name]
    settings += ["--checkpoint.save_steps", "1000000", "--checkpoint.keep_last", "1"]
    for stage in STAGES:
        subprocess.run([sys.executable, "-m", "mindpangu", *stage, *settings], check=True, stdout=subprocess.DEVNULL)
    pairs = {key.removeprefix("--"): value for key, value in zip(settings[::2], settings[1::2], strict=True)}
    folder = Path(load_config(pairs.pop("config"), pairs).training.output_dir) / name
    result = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return {domain["domain"]: domain["loss"] for domain in result["domains"]}


def compare(rre: list[dict[str, float]], dense: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """domain → mean of (RRE − dense) over seeds, in nats, and the half width of its 95 % interval (paired t)."""
    differences = {}
    for domain in [*rre[0], "mean"]:
        values = np.array([_loss(a, domain) - _loss(b, domain) for a, b in zip(rre, dense, strict=True)])
        half_width = _T95[len(values) - 2] * values.std(ddof=1) / math.sqrt(len(values))
        differences[domain] = {"mean": float(values.mean()), "half_width": float(half_width)}
    return differences


def format_table(losses: dict[str, list[dict[str, float]]], differences: dict[str, dict[str, float]]) -> str:
    lines = [f"{'domain':>12} {'RRE ppl':>9} {'dense ppl':>10} {'difference (nats, 95 % interval)':>34}"]
    for domain, difference in differences.items():
        rre, dense = (math.exp(np.mean([_loss(each, domain) for each in losses[kind]])) for kind in ("rre", "dense"))
        interval = f"{difference['mean']:+.3f} ± {difference['half_width']:.3f}"
        lines.append(f"{domain:>12} {rre:>9.1f} {dense:>10.1f} {interval:>34}")
    return "\n".join(lines)


def _loss(losses: dict[str, float], domain: str) -> float:
    return float(np.mean(list(losses.values()))) if domain == "mean" else losses[domain]


if __name__ == "__main__":
    main()
