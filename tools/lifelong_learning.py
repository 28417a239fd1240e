"""Adds a fifth domain to a model of four, and measures what the new domain gains and what the old ones lose.

Trains an RRE model and a dense model on four domains, with several seeds. Then the RRE model gets the domain `poetry`
(classical Chinese) as a copy of `zh`, and only its experts are trained; the dense model is fine-tuned on the same text
for as many steps. Takes about as long as four main jobs per seed.

    .venv/bin/python tools/lifelong_learning.py                        # 3 seeds of recipes/cpu_smoke.yaml
    .venv/bin/python tools/lifelong_learning.py --seeds 2 --new-steps 100
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from comparison.command_line import comparison_parser, read_arguments
from comparison.intervals import Interval
from comparison.runs import STAGES, Runs, mindpangu

from mindpangu.checkpoint import latest_iteration
from mindpangu.cli.programs import run_program
from mindpangu.files import write_json, write_text_atomically

NEW = "poetry"
OLD_TEXT = (
    "bilingual.libreoffice-help code.cpython-stdlib en.libreoffice-help en.sqlite-docs zh.libreoffice-help".split()
)
NEW_TEXT = "zh.chinese-poetry"
CORPUS = Path("recipes/corpus")

Losses = dict[str, float]


def main() -> None:
    parser = comparison_parser(__doc__, "recipes/cpu_smoke.yaml", default="3", fewest_seeds=2)
    parser.add_argument("--new-steps", type=int, default=60, help="steps on the new domain; default: %(default)s")
    reserved = ("data.corpus", "data.tokenizer", "data.mixture", "domains.added", "routing.table", "training.train")
    arguments, overrides = read_arguments(parser, reserved)
    runs = Runs(arguments.config, overrides)
    seeds = range(arguments.seeds or 3)
    measured = [measure(runs, seed, arguments.new_steps) for seed in tqdm(seeds, unit="seed", disable=None)]
    print(format_table(measured))
    if arguments.json:
        write_json(arguments.json, measured)


def measure(runs: Runs, seed: int, new_steps: int) -> dict[str, Losses]:
    """Trains one seed; returns the held-out losses rre_before, rre_after, dense_before and dense_after."""
    old_text = f"[{', '.join(str(CORPUS / f'{name}.jsonl') for name in OLD_TEXT)}]"
    base: dict[str, object] = {"training.seed": seed, "checkpoint.save_steps": 1_000_000}
    old_keys = base | {"data.corpus": old_text}
    dense_keys: dict[str, object] = {"model.rre_layers": 0}
    rre = runs.run(f"lifelong_rre_{seed}", old_keys)
    dense = runs.run(f"lifelong_dense_{seed}", old_keys | dense_keys)

    grown = rre.with_name(f"lifelong_grown_{seed}")
    if latest_iteration(grown) is None:
        mindpangu("experts", "add", NEW, "--from", "zh", "--checkpoint", str(rre), "--out", str(grown))
    poetry = relabel(rre.parent / "poetry.jsonl")
    # the tokenizer of the four domains is kept; held-out text is chosen per domain, so theirs does not change
    new_keys = base | {
        "data.corpus": f"{old_text[:-1]}, {poetry}]",
        "data.tokenizer": rre / "tokenizer" / "main.model",
        "domains.added": f"[{{name: {NEW}, kind: monolingual, control_tokens: [<cn>]}}]",
        "data.mixture": f"{{bilingual: 0, zh: 0, en: 0, code: 0, {NEW}: 1}}",
        "training.steps": new_steps,
    }
    (table,) = grown.glob("iteration_*/routing")
    rre_keys = new_keys | {"routing.table": table, "training.train": f"experts:{NEW}"}
    name = f"lifelong_rre_{NEW}_{seed}"
    runs.run(name, rre_keys, options=["--load", str(grown)], stages=STAGES[:-1])
    losses: dict[str, Losses] = {}
    for label, checkpoint in (("rre_before", ["--checkpoint", str(grown)]), ("rre_after", [])):
        runs.run(name, rre_keys, stages=(["evaluate", "--no-wrong-domains", *checkpoint],))
        losses[label] = runs.losses(name)
    runs.run(f"lifelong_dense_{NEW}_{seed}", new_keys | dense_keys, options=["--load", str(dense)])
    losses["dense_before"] = runs.losses(f"lifelong_dense_{seed}")
    losses["dense_after"] = runs.losses(f"lifelong_dense_{NEW}_{seed}")
    return losses


def relabel(path: Path) -> Path:
    """Writes the corpus of the new domain, which the main job assigns to `zh`; returns `path`."""
    with open(CORPUS / f"{NEW_TEXT}.jsonl", encoding="utf-8") as lines:
        records = [json.loads(line) | {"domain": NEW} for line in lines]
    write_text_atomically(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path


def format_table(measured: Sequence[dict[str, Losses]]) -> str:
    """Formats the perplexities before and after (geometric means over the seeds) and the mean change of the loss."""
    lines = [f"{'':>12} {'RRE, experts of ' + NEW:^42} {'dense, fine-tuned':^42}"]
    lines.append(
        f"{'perplexity':>12} " + " ".join(f"{'before':>9} {'after':>9} {'change (nats)':>22}" for _ in range(2))
    )
    for domain in measured[0]["rre_after"]:
        cells = []
        for model in ("rre", "dense"):
            # empty for the new domain, which the dense model does not have before
            before = [losses[f"{model}_before"][domain] for losses in measured if domain in losses[f"{model}_before"]]
            after = [losses[f"{model}_after"][domain] for losses in measured]
            cells.append(_cells(before, after))
        lines.append(f"{domain:>12} {' '.join(cells)}")
    return "\n".join(lines)


def _cells(before: list[float], after: list[float]) -> str:
    perplexity_after = math.exp(np.mean(after))
    if not before:
        return f"{'':>9} {perplexity_after:>9.1f} {'':>22}"
    changes = [new - old for new, old in zip(after, before, strict=True)]
    change = "0, every bit the same" if not any(changes) else str(Interval.from_values(changes))
    return f"{math.exp(np.mean(before)):>9.1f} {perplexity_after:>9.1f} {change:>22}"


if __name__ == "__main__":
    run_program(main)
