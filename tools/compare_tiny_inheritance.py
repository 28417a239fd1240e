"""Compares small models that inherit from a larger one, by each selection method, with one from random weights.

For every seed, trains a parent, prunes it to a child with each method (`mindpangu tiny inherit`), and trains the
children and a randomly initialized model for the same steps on the same batches. The children are trained on their
parent's text, as in the paper (arXiv 2402.02791). Prints the held-out loss before and after the training, mean of the
domains, and the paired differences with 95 % intervals. All runs are kept, so a stopped comparison can be resumed.

    .venv/bin/python tools/compare_tiny_inheritance.py                    # 3 seeds, about 40 minutes on two cores
    .venv/bin/python tools/compare_tiny_inheritance.py --quick            # checks that it runs; 3 minutes
"""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from comparison.command_line import comparison_parser, read_arguments
from comparison.intervals import Interval
from comparison.runs import Runs

from mindpangu.checkpoint import latest_iteration
from mindpangu.cli.programs import run_program
from mindpangu.files import read_json, write_json

INITIAL = "initial"
METHODS = ("learned", "taylor", "l2", "l1", "random")
VARIANTS = (INITIAL, *METHODS)
PAIRS = (
    *((method, INITIAL) for method in METHODS),
    *(("learned", other) for other in METHODS[1:]),
    *((method, "random") for method in METHODS[1:-1]),
)
"""The pairs that are compared: each method with random initialization, and methods with each other."""

ARCHITECTURE = {
    "model.rre_layers": "0",
    "model.query_layer": "false",
    "model.position": "rope",
    "model.norm": "rmsnorm",
    "model.activation": "swiglu",
    "model.biases": "false",
    "model.tied_head": "false",
    "model.series_terms": "2",
    "model.shortcut_reduction": "8",
    "model.initialization": "constant",
    "domains.preset": "sigma_4",
}

STAGES = (["tokenizer", "train"], ["data", "prepare"], ["train"], ["evaluate"])

Losses = dict[str, Any]
"""{"before": loss or None, "after": loss}: held-out loss in nats before and after the training."""


@dataclass(frozen=True)
class Size:
    """Sizes of the models and trainings.

    Attributes:
        parent, child: keys of the model section.
        parent_steps, child_steps: numbers of training steps.
        common: configuration keys of all runs.
        options: options of `tiny inherit`.
    """

    parent: Mapping[str, str]
    child: Mapping[str, str]
    parent_steps: int
    child_steps: int
    common: Mapping[str, str]
    options: Sequence[str]


FULL = Size(
    parent={"num_layers": "8", "hidden_size": "192", "num_heads": "6", "ffn_hidden_size": "512"},
    child={"num_layers": "6", "hidden_size": "128", "num_heads": "4", "ffn_hidden_size": "344"},
    parent_steps=400,
    child_steps=150,
    common={"model.vocab_size": "6000", "model.seq_length": "128", "training.local_batch_size": "4"},
    options=("--calibration-batches", "8", "--mask-steps", "200"),
)
QUICK = Size(
    parent={"num_layers": "5", "hidden_size": "48", "num_heads": "3", "ffn_hidden_size": "64"},
    child={"num_layers": "4", "hidden_size": "32", "num_heads": "2", "ffn_hidden_size": "40"},
    parent_steps=30,
    child_steps=10,
    common={"model.vocab_size": "5000", "model.seq_length": "32", "training.local_batch_size": "4"},
    options=("--calibration-batches", "2", "--mask-steps", "20"),
)

RESERVED_KEYS = (
    *(f"model.{key}" for key in FULL.parent),
    "training.steps",
    "data.tokenizer",
    "lr_scheduler.warmup_steps",
)
"""Keys in which parents and children differ."""


def main() -> None:
    parser = comparison_parser(__doc__, "recipes/cpu_smoke.yaml", default="3, with --quick 1")
    parser.add_argument("--quick", action="store_true", help="train the smallest models only")
    arguments, overrides = read_arguments(parser, RESERVED_KEYS)
    seeds = arguments.seeds or (1 if arguments.quick else 3)
    comparison = Comparison(arguments.config, overrides, "quick" if arguments.quick else "usual")
    work = [(seed, variant) for seed in range(seeds) for variant in VARIANTS]
    measured: list[dict[str, Losses]] = [{} for _ in range(seeds)]
    parents: list[float] = []
    for seed, variant in tqdm(work, unit="child", disable=None):
        if len(parents) == seed:
            parents.append(comparison.train_parent(seed))
        measured[seed][variant] = comparison.measure(seed, variant)
    print(format_table(measured, parents, comparison.size))
    if arguments.json:
        figures = {"command": sys.argv, "size": asdict(comparison.size), "parents": parents, "children": measured}
        intervals = {" - ".join(pair): asdict(interval) for pair, interval in differences(measured).items()}
        write_json(arguments.json, figures | {"differences": intervals})


class Comparison:
    """The runs of one recipe. Finished runs are kept in their folders and not repeated."""

    def __init__(self, config: str, overrides: Mapping[str, str], name: str):
        self.size = {"usual": FULL, "quick": QUICK}[name]
        self._name = name
        self._runs = Runs(config, {**ARCHITECTURE, **self.size.common, **overrides})

    def measure(self, seed: int, variant: str) -> Losses:
        """Trains a child; returns its held-out loss in nats, mean of the domains, before and after the training.

        Random weights have no checkpoint before the training, so their first loss is None.
        """
        name = self._run_name("child", seed, variant)
        root = self._runs.folder(name).root
        keys = self._child_keys(seed)
        result_file = self._runs.result_file(name, keys)
        if result_file.is_current():
            return read_json(result_file.path)["losses"]
        self._runs.run(name, keys, stages=(["tokenizer", "train"], ["data", "prepare"]))
        options: list[str] = []
        before = None
        if variant != INITIAL:
            folder = root / "inherited"
            if latest_iteration(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
                verb = ["tiny", "inherit", "--parent", str(self._parent_root(seed)), "--out", str(folder)]
                self._runs.run(name, keys, stages=([*verb, "--neurons", variant, *self.size.options],))
            before = self._evaluate(name, keys, folder)
            options = ["--load", str(folder)]
        self._runs.run(name, keys, options=options, stages=(["train"],))
        losses = {"before": before, "after": self._evaluate(name, keys, root)}
        result_file.write({"losses": losses})
        return losses

    def train_parent(self, seed: int) -> float:
        """Trains a parent; returns its held-out loss."""
        name = self._run_name("parent", seed)
        keys = _model(self.size.parent) | _training(seed, self.size.parent_steps)
        self._runs.run(name, keys, stages=STAGES)
        return self._runs.mean_loss(name)

    def _parent_root(self, seed: int) -> Path:
        return self._runs.folder(self._run_name("parent", seed)).root

    def _child_keys(self, seed: int) -> dict[str, object]:
        tokenizer = self._parent_root(seed) / "tokenizer" / "main.model"
        return _model(self.size.child) | _training(seed, self.size.child_steps) | {"data.tokenizer": tokenizer}

    def _evaluate(self, name: str, keys: Mapping[str, object], checkpoint: Path) -> float:
        self._runs.run(name, keys, stages=(["evaluate", "--checkpoint", str(checkpoint)],))
        return self._runs.mean_loss(name)

    def _run_name(self, *words: object) -> str:
        return "_".join(map(str, ("tiny_inheritance", self._name, *words)))


def differences(measured: Sequence[Mapping[str, Losses]]) -> dict[tuple[str, str], Interval]:
    """Returns the interval of (first loss − second loss) after training for each of PAIRS; none for one seed."""
    if len(measured) < 2:
        return {}
    return {
        (first, second): Interval.from_values([seed[first]["after"] - seed[second]["after"] for seed in measured])
        for first, second in PAIRS
    }


def format_table(measured: Sequence[Mapping[str, Losses]], parents: Sequence[float], size: Size) -> str:
    """Formats Markdown tables of the losses of every variant and of the differences with intervals."""
    lines = [
        f"held-out loss (nats per token, mean of the domains), {len(measured)} seed{'s' * (len(measured) > 1)}; parent "
        f"{size.parent_steps} steps, children {size.child_steps} steps on the same text",
        "",
        "| model | before training | after |",
        "|---|---|---|",
        f"| parent | | {np.mean(parents):.3f} |",
    ]
    for variant in VARIANTS:
        after = np.mean([seed[variant]["after"] for seed in measured])
        before = "" if variant == INITIAL else f" {np.mean([seed[variant]['before'] for seed in measured]):.3f}"
        lines.append(f"| {_label(variant)} |{before} | {after:.3f} |")
    intervals = differences(measured)
    if intervals:
        lines += ["", "| difference of the losses after training | 95 % interval |", "|---|---|"]
        for (first, second), interval in intervals.items():
            lines.append(f"| {_label(first)} − {_label(second)} | {interval} |")
    return "\n".join(lines)


def _label(variant: str) -> str:
    return "random weights" if variant == INITIAL else f"inherited, {variant}"


def _model(keys: Mapping[str, object]) -> dict[str, object]:
    return {f"model.{key}": value for key, value in keys.items()}


def _training(seed: int, steps: int) -> dict[str, object]:
    # data.seed is the same everywhere, so that all models see the same batches and the same held-out text
    return {
        "training.seed": seed,
        "training.steps": steps,
        "checkpoint.save_steps": 1_000_000,
        "checkpoint.keep_last": 1,
        "lr_scheduler.warmup_steps": min(15, steps // 4),
    }


if __name__ == "__main__":
    run_program(main)
