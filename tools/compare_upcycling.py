"""Measures how many steps a sparse model upcycled from a dense parent saves, compared with random weights.

Splits the documents of the corpus into two halves. The dense parent is trained on the first half and the sparse
children on the second, so the parent's text helps them only by what the parent learned. Takes longer than five main
jobs.

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
from mindpangu.cli.programs import run_program
from mindpangu.files import read_json, write_json, write_text_atomically

CORPUS = Path("recipes/corpus")
NUM_EVALUATIONS = 6
"""How often each child is evaluated during its training, at equal intervals."""


def main() -> None:
    parser = comparison_parser(__doc__, "recipes/cpu_smoke.yaml", default="1")
    parser.add_argument("--steps", type=int, default=150, help="training steps of each child; default: %(default)s")
    parser.add_argument(
        "--parent-steps", type=int, default=150, help="training steps of the parent; default: %(default)s"
    )
    arguments, overrides = read_arguments(parser, ("data.corpus", "data.tokenizer", "training.steps"))
    if arguments.steps < NUM_EVALUATIONS or arguments.steps % NUM_EVALUATIONS:
        parser.error(
            f"--steps is {arguments.steps}, which has no {NUM_EVALUATIONS} equal parts; give a multiple of "
            f"{NUM_EVALUATIONS}"
        )

    runs = Runs(arguments.config, overrides)
    measured = [
        measure(runs, seed, arguments.steps, arguments.parent_steps)
        for seed in tqdm(range(arguments.seeds or 1), unit="seed", disable=None)
    ]

    print(format_table(measured, arguments.steps, arguments.parent_steps))
    if arguments.json:
        write_json(arguments.json, measured)


def measure(runs: Runs, seed: int, steps: int, parent_steps: int) -> dict[str, list[float]]:
    """Trains one seed; returns the held-out loss in nats, mean of the domains, of both children at each evaluation.

    Saves the losses in a file and deletes the children's many checkpoints.
    """
    interval = steps // NUM_EVALUATIONS
    parent_name = f"upcycling_parent_{parent_steps}_{seed}"
    parent = runs.folder(parent_name).root
    output = parent.parent
    first, second = halves(output / "upcycling_halves")
    child = {
        "training.seed": seed,
        "training.steps": steps,
        "data.corpus": f"[{second}/*.jsonl]",
        "data.tokenizer": parent / "tokenizer" / "main.model",
        "checkpoint.save_steps": interval,
        "checkpoint.keep_last": NUM_EVALUATIONS,
    }

    result_file = runs.result_file(f"upcycling_upcycled_{parent_steps}_{seed}", child)
    if result_file.is_current():
        return read_json(result_file.path)["losses"]

    parent_keys = {
        "training.seed": seed,
        "training.steps": parent_steps,
        "data.corpus": f"[{first}/*.jsonl]",
        "model.rre_layers": 0,
        "checkpoint.save_steps": 1_000_000,
    }
    runs.run(parent_name, parent_keys)

    measured: dict[str, list[float]] = {}
    for name in ("random", "upcycled"):
        run = f"upcycling_{name}_{parent_steps}_{seed}"
        options: list[str] = []
        if name == "upcycled":
            folder = output / f"upcycling_child_{parent_steps}_{seed}"
            runs.run(run, child, stages=(["tokenizer", "train"], ["data", "prepare"], ["routing", "build"]))
            if latest_iteration(folder) is None:
                runs.run(run, child, stages=(["upcycle", "--parent", str(parent), "--out", str(folder)],))
            options = ["--load", str(folder)]
        root = runs.run(run, child, options=options)
        measured[name] = [
            heldout_loss(runs, run, child, root / "checkpoint" / f"iteration_{(i + 1) * interval:08d}")
            for i in range(NUM_EVALUATIONS)
        ]
        shutil.rmtree(root / "checkpoint")

    result_file.write({"losses": measured})
    return measured


def heldout_loss(runs: Runs, name: str, keys: Mapping[str, object], checkpoint: Path) -> float:
    """Evaluates a checkpoint; returns the held-out loss in nats, mean of the domains."""
    runs.run(name, keys, stages=(["evaluate", "--no-wrong-domains", "--checkpoint", str(checkpoint)],))
    return runs.mean_loss(name)


def halves(folder: Path) -> tuple[Path, Path]:
    """Splits the corpus into two folders, keeping the records of a source document together."""
    first = folder / "first"
    second = folder / "second"
    for path in sorted(CORPUS.glob("*.jsonl")):
        texts: list[list[str]] = [[], []]
        for line in path.read_text("utf-8").splitlines():
            record = json.loads(line)
            document = json.dumps([record.get("source"), record.get("doc")]).encode()
            texts[hashlib.blake2b(document, digest_size=1).digest()[0] % 2].append(line)
        for half, lines in zip((first, second), texts, strict=True):
            write_text_atomically(half / path.name, "".join(f"{line}\n" for line in lines))
    return first, second


def format_table(measured: Sequence[dict[str, list[float]]], steps: int, parent_steps: int) -> str:
    """Formats a table with a row per evaluation, and how many steps upcycling saves."""
    random, upcycled = (np.mean([each[name] for each in measured], 0) for name in ("random", "upcycled"))
    lines = [f"held-out loss (nats, mean of the domains); dense parent: {parent_steps} steps on other documents"]
    lines.append(f"{'steps':>8} {'random':>8} {'upcycled':>10}")
    for i in range(NUM_EVALUATIONS):
        lines.append(f"{(i + 1) * steps // NUM_EVALUATIONS:>8} {random[i]:>8.3f} {upcycled[i]:>10.3f}")

    reached = [i for i in range(NUM_EVALUATIONS) if upcycled[i] <= random[-1]]
    if reached:
        lines.append(
            f"after {(reached[0] + 1) * steps // NUM_EVALUATIONS} steps, the upcycled model is as good as the random "
            f"one after {steps}"
        )
    else:
        lines.append(f"within {steps} steps, the upcycled model does not become as good as the random one")
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
