"""Compares a sparse model upcycled from a dense parent with one from random weights: how many steps it saves.

The documents of the corpus are dealt into two halves. A dense parent is trained on the first; the sparse children are
trained on the second, so what the parent read helps them only by what it learned. The time of five main jobs and more.

    .venv/bin/python tools/compare_upcycling.py                            # recipes/cpu_smoke.yaml, seed 0
    .venv/bin/python tools/compare_upcycling.py --parent-steps 300 --seeds 3
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from comparison.command_line import comparison_parser, read_arguments
from comparison.runs import Runs

from mindpangu.checkpoint import latest_iteration
from mindpangu.files import read_json

CORPUS = Path("recipes/corpus")
MOMENTS = 6
"""At how many moments of its training the child is evaluated, in equal distances."""


def main() -> None:
    parser = comparison_parser(__doc__, "recipes/cpu_smoke.yaml", default="1")
    parser.add_argument("--steps", type=int, default=150, help="of each child; default: %(default)s")
    parser.add_argument("--parent-steps", type=int, default=150, help="default: %(default)s")
    arguments, overrides = read_arguments(parser, ("data.corpus", "data.tokenizer", "training.steps"))
    if arguments.steps < MOMENTS or arguments.steps % MOMENTS:
        parser.error(f"--steps is {arguments.steps}, which has no {MOMENTS} equal parts; give a multiple of {MOMENTS}")
    runs = Runs(arguments.config, overrides)
    measured = [
        measure(runs, seed, arguments.steps, arguments.parent_steps)
        for seed in tqdm(range(arguments.seeds or 1), unit="seed", disable=None)
    ]
    print(format_table(measured, arguments.steps, arguments.parent_steps))
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1))


def measure(runs: Runs, seed: int, steps: int, parent_steps: int) -> dict[str, list[float]]:
    """Held-out loss in nats, mean over the domains, of both children at each of the moments.

    What was measured is kept in a file, and the checkpoints of the moments, which are many, are not.
    """
    every = steps // MOMENTS
    parent_name = f"upcycling_parent_{parent_steps}_{seed}"
    parent = runs.folder(parent_name).root
    output = parent.parent
    first, second = halves(output / "upcycling_halves")
    child = {
        "training.seed": seed,
        "training.steps": steps,
        "data.corpus": f"[{second}/*.jsonl]",
        "data.tokenizer": parent / "tokenizer" / "main.model",
        "checkpoint.save_steps": every,
        "checkpoint.keep_last": MOMENTS,
    }
    kept = runs.measured(f"upcycling_upcycled_{parent_steps}_{seed}", child)
    if kept.is_current():
        return read_json(kept.path)["losses"]
    keys = {
        "training.seed": seed,
        "training.steps": parent_steps,
        "data.corpus": f"[{first}/*.jsonl]",
        "model.rre_layers": 0,
        "checkpoint.save_steps": 1_000_000,
    }
    runs.run(parent_name, keys)
    measured = {}
    for name in ("random", "upcycled"):
        run, options = f"upcycling_{name}_{parent_steps}_{seed}", []
        if name == "upcycled":
            folder = output / f"upcycling_child_{parent_steps}_{seed}"
            runs.run(run, child, stages=(["tokenizer", "train"], ["data", "prepare"], ["routing", "build"]))
            if latest_iteration(folder) is None:
                runs.run(run, child, stages=(["upcycle", "--parent", str(parent), "--out", str(folder)],))
            options = ["--load", str(folder)]
        root = runs.run(run, child, options=options)
        measured[name] = [
            heldout_loss(runs, run, child, root / "checkpoint" / f"iteration_{(moment + 1) * every:08d}")
            for moment in range(MOMENTS)
        ]
        shutil.rmtree(root / "checkpoint")
    kept.write({"losses": measured})
    return measured


def heldout_loss(runs: Runs, name: str, keys: Mapping[str, object], checkpoint: Path) -> float:
    runs.run(name, keys, stages=(["evaluate", "--no-wrong-domains", "--checkpoint", str(checkpoint)],))
    return runs.mean_loss(name)


def halves(folder: Path) -> tuple[Path, Path]:
    """The corpus in two folders; the records of one source document are in one of them."""
    parts = folder / "first", folder / "second"
    for part in parts:
        part.mkdir(parents=True, exist_ok=True)
    for path in sorted(CORPUS.glob("*.jsonl")):
        texts: list[list[str]] = [[], []]
        for line in path.read_text("utf-8").splitlines():
            record = json.loads(line)
            document = json.dumps([record.get("source"), record.get("doc")]).encode()
            texts[hashlib.blake2b(document, digest_size=1).digest()[0] % 2].append(line)
        for part, lines in zip(parts, texts, strict=True):
            (part / path.name).write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return parts


def format_table(measured: Sequence[dict[str, list[float]]], steps: int, parent_steps: int) -> str:
    random, upcycled = (np.mean([each[name] for each in measured], 0) for name in ("random", "upcycled"))
    lines = [f"held-out loss (nats, mean of the domains); dense parent: {parent_steps} steps on other documents"]
    lines.append(f"{'steps':>8} {'random':>8} {'upcycled':>10}")
    for moment in range(MOMENTS):
        lines.append(f"{(moment + 1) * steps // MOMENTS:>8} {random[moment]:>8.3f} {upcycled[moment]:>10.3f}")
    reached = [moment for moment in range(MOMENTS) if upcycled[moment] <= random[-1]]
    if reached:
        lines.append(
            f"the upcycled model is as good as the random one after {steps} steps within "
            f"{(reached[0] + 1) * steps // MOMENTS}"
        )
    else:
        lines.append(f"the upcycled model does not reach the random one within {steps} steps")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
