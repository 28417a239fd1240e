"""A small model that inherits from a larger one, by each way to choose its parts, beside one from random weights.

For every seed a parent is trained on the training split, children are cut out of it (`mindpangu tiny inherit`), and
these and a randomly initialised one are trained for the same steps on the same batches. Held-out loss before and after,
mean over the domains, and the paired differences with their 95 % intervals. The parent's data are the children's too,
as in the paper (arXiv 2402.02791). Every run is kept, so a comparison that was stopped goes on where it was.

    .venv/bin/python tools/compare_tiny_inheritance.py                    # 3 seeds, some 40 minutes on two cores
    .venv/bin/python tools/compare_tiny_inheritance.py --quick            # does it run at all? 3 minutes
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from comparison.command_line import comparison_parser, read_arguments
from comparison.intervals import Interval
from comparison.runs import Runs

from mindpangu.checkpoint import latest_iteration
from mindpangu.files import read_json

INITIAL = "initial"
METHODS = ("learned", "taylor", "l2", "l1", "random")
VARIANTS = (INITIAL, *METHODS)
PAIRS = (
    *((method, INITIAL) for method in METHODS),
    *(("learned", other) for other in METHODS[1:]),
    *((method, "random") for method in METHODS[1:-1]),
)
"""What is compared with what: inheritance with random initialisation, methods with each other."""

ARCHITECTURE = {
    "model.rre_layers": "0", "model.query_layer": "false", "model.position": "rope", "model.norm": "rmsnorm",
    "model.activation": "swiglu", "model.biases": "false", "model.tied_head": "false", "model.series_terms": "2",
    "model.shortcut_reduction": "8", "model.initialization": "constant", "domains.preset": "sigma_4",
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How large models and trainings are.

    Attributes:
        parent, child: keys of the model section. parent_steps, child_steps: of the trainings.
        common: keys of all runs. options: of `tiny inherit`.
    """

    parent: Mapping[str, str]
    child: Mapping[str, str]
    parent_steps: int
    child_steps: int
    common: Mapping[str, str]
    options: Sequence[str]


USUAL = Size(
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


OWN = (*(f"model.{key}" for key in USUAL.parent), "training.steps", "data.tokenizer", "lr_scheduler.warmup_steps")
"""Keys that parents and children differ in."""


def main() -> None:
    parser = comparison_parser(__doc__, "recipes/cpu_smoke.yaml", default="3, with --quick 1")
    parser.add_argument("--quick", action="store_true", help="smallest models")
    arguments, overrides = read_arguments(parser, OWN)
    seeds = arguments.seeds or (1 if arguments.quick else 3)
    comparison = Comparison(arguments.config, overrides, "quick" if arguments.quick else "usual")
    work = [(seed, variant) for seed in range(seeds) for variant in VARIANTS]
    measured: list[dict[str, dict[str, float | None]]] = [{} for _ in range(seeds)]
    parents = []
    for seed, variant in tqdm(work, unit="child", disable=None):
        if len(parents) == seed:
            parents.append(comparison.train_parent(seed))
        measured[seed][variant] = comparison.measure(seed, variant)
    print(format_table(measured, parents, comparison.size))
    if arguments.json:
        figures = {"command": sys.argv, "size": asdict(comparison.size), "parents": parents, "children": measured}
        found = {" - ".join(pair): asdict(difference) for pair, difference in differences(measured).items()}
        arguments.json.write_text(json.dumps(figures | {"differences": found}, indent=1) + "\n")


class Comparison:
    """Runs of one recipe; what is done is kept in their folders and not done again."""

    def __init__(self, config: str, overrides: Mapping[str, str], name: str):
        self.size, self._name = {"usual": USUAL, "quick": QUICK}[name], name
        self._runs = Runs(config, {**ARCHITECTURE, **self.size.common, **overrides})

    def measure(self, seed: int, variant: str) -> dict[str, float | None]:
        """Held-out loss in nats, mean of the domains: {"before": …, "after": …} the child's training. Random weights
        have no checkpoint before it, and so no loss."""
        name = self._run("child", seed, variant)
        root, keys = self._runs.folder(name).root, self._child_keys(seed)
        kept = self._runs.measured(name, keys)
        if kept.is_current():
            return read_json(kept.path)["losses"]
        self._runs.run(name, keys, stages=(["tokenizer", "train"], ["data", "prepare"]))
        options, before = [], None
        if variant != INITIAL:
            folder = root / "inherited"
            if latest_iteration(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
                verb = ["tiny", "inherit", "--parent", str(self._parent_root(seed)), "--out", str(folder)]
                self._runs.run(name, keys, stages=([*verb, "--neurons", variant, *self.size.options],))
            before, options = self._evaluate(name, keys, folder), ["--load", str(folder)]
        self._runs.run(name, keys, options=options, stages=(["train"],))
        measured = {"before": before, "after": self._evaluate(name, keys, root)}
        kept.write({"losses": measured})
        return measured

    def train_parent(self, seed: int) -> float:
        """Its held-out loss after its training."""
        name = self._run("parent", seed)
        keys = _model(self.size.parent) | _training(seed, self.size.parent_steps)
        self._runs.run(name, keys, stages=_STAGES)
        return self._runs.mean_loss(name)

    def _parent_root(self, seed: int) -> Path:
        return self._runs.folder(self._run("parent", seed)).root

    def _child_keys(self, seed: int) -> dict[str, object]:
        tokenizer = self._parent_root(seed) / "tokenizer" / "main.model"
        return _model(self.size.child) | _training(seed, self.size.child_steps) | {"data.tokenizer": tokenizer}

    def _evaluate(self, name: str, keys: Mapping[str, object], checkpoint: Path) -> float:
        self._runs.run(name, keys, stages=(["evaluate", "--checkpoint", str(checkpoint)],))
        return self._runs.mean_loss(name)

    def _run(self, *parts: object) -> str:
        return "_".join(map(str, ("tiny_inheritance", self._name, *parts)))


_STAGES = (["tokenizer", "train"], ["data", "prepare"], ["train"], ["evaluate"])


def differences(measured: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[tuple[str, str], Interval]:
    """Pair of PAIRS → loss of the first − loss of the second after training (paired t); none of a single seed."""
    if len(measured) < 2:
        return {}
    return {
        (first, second): Interval.from_values([each[first]["after"] - each[second]["after"] for each in measured])
        for first, second in PAIRS
    }


def format_table(measured: Sequence[Mapping[str, Mapping[str, float]]], parents: Sequence[float], size: Size) -> str:
    """Markdown: losses of every variant, and differences with intervals."""
    lines = [
        f"held-out loss (nats a token, mean of the domains), {len(measured)} seed{'s' * (len(measured) > 1)}; parent "
        f"{size.parent_steps} steps, children {size.child_steps} steps on the same text",
        "",
        "| model | before training | after |",
        "|---|---|---|",
        f"| parent | | {np.mean(parents):.3f} |",
    ]
    for variant in VARIANTS:
        befores, afters = ([each[variant][moment] for each in measured] for moment in ("before", "after"))
        before = "" if variant == INITIAL else f" {np.mean(befores):.3f}"
        lines.append(f"| {_label(variant)} |{before} | {np.mean(afters):.3f} |")
    found = differences(measured)
    if found:
        lines += ["", "| difference of the losses after training | 95 % interval |", "|---|---|"]
        for (first, second), difference in found.items():
            lines.append(f"| {_label(first)} − {_label(second)} | {difference} |")
    return "\n".join(lines)


def _label(variant: str) -> str:
    return "random weights" if variant == INITIAL else f"inherited, {variant}"


def _model(keys: Mapping[str, object]) -> dict[str, object]:
    return {f"model.{key}": value for key, value in keys.items()}


def _training(seed: int, steps: int) -> dict[str, object]:
    # the data's seed stays: all models of one seed see the same batches, and all seeds the same held-out text
    return {
        "training.seed": seed,
        "training.steps": steps,
        "checkpoint.save_steps": 1_000_000,
        "checkpoint.keep_last": 1,
        "lr_scheduler.warmup_steps": min(15, steps // 4),
    }


if __name__ == "__main__":
    main()
