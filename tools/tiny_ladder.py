"""Trains the ladder of the tiny-model paper (arXiv 2402.02791) on real text, at equal training compute.

The rungs are base → + compact tokenizer → + architecture → + inheritance → + rounds, each on top of the previous one.

    bash recipes/tiny_ladder.sh              # hours: three seeds, with intervals
    bash recipes/tiny_ladder.sh --quick      # minutes: one seed, a few steps; only checks that everything runs

Every step is a command-line verb and is skipped if it is done, so a stopped ladder can be resumed.
"""

import argparse
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from comparison.command_line import add_seeds
from comparison.intervals import Interval
from comparison.runs import Runs, as_options, mindpangu

from mindpangu.cli.programs import run_program
from mindpangu.config import Config, load_config, load_saved_config
from mindpangu.config.run_folder import RunFolder
from mindpangu.data import HELDOUT, TokenShards
from mindpangu.evaluation.bits_per_byte import bits_per_byte
from mindpangu.files import read_json, read_json_object, write_json, write_text_atomically
from mindpangu.model.parameter_count import count_parameters, in_words
from mindpangu.tiny.compute import steps_within, training_flops
from mindpangu.tiny.inheritance.report import REPORT
from mindpangu.tokenizer import Tokenizer

CONFIG = "recipes/cpu_tiny.yaml"
PAPER = {"base": 42.41, "tokenizer": 44.11, "architecture": 46.53, "inheritance": 49.79, "rounds": 51.28}
"""Average score of the paper's 1B model over ten tasks, in percent, by rung."""

PREPARE = (["tokenizer", "train"], ["data", "prepare"])
TRAIN = (*PREPARE, ["train"], ["evaluate"])
HEAD_SIZE = 32


@dataclass(frozen=True)
class Size:
    """Sizes of the ladder's trainings.

    Attributes:
        steps: training steps of the base; the other rungs get the steps of equal compute.
        pieces: number of pieces of the compact tokenizer.
        points: number of points of the architecture search.
        search_steps: training steps of each point.
        calibration: number of batches that the inherited layers and units are selected with.
        mask_steps: training steps of the learned mask.
    """

    steps: int
    pieces: int
    points: int
    search_steps: int
    calibration: int
    mask_steps: int


FULL = Size(steps=800, pieces=5000, points=12, search_steps=150, calibration=16, mask_steps=200)
QUICK = Size(steps=40, pieces=5000, points=3, search_steps=20, calibration=4, mask_steps=20)


@dataclass(frozen=True)
class Rung:
    """One model of the ladder.

    Attributes:
        parameters: number of parameters.
        steps: number of training steps.
        bits: domain → held-out bits per byte.
        compute: FLOPs of the training.
        apart: FLOPs counted separately: the training of the parent.
    """

    parameters: int
    steps: int
    bits: Mapping[str, float]
    compute: float
    apart: float = 0.0

    @property
    def mean(self) -> float:
        """Mean of the held-out bits per byte over the domains."""
        return float(np.mean(list(self.bits.values())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="one seed and a few steps: only checks that everything runs"
    )
    add_seeds(parser, default="3, with --quick 1")
    parser.add_argument(
        "--out", type=Path, help="output folder; default: output/tiny_ladder, with --quick output/tiny_ladder_quick"
    )
    arguments = parser.parse_args()

    size = QUICK if arguments.quick else FULL
    seeds = arguments.seeds or (1 if arguments.quick else 3)
    out = arguments.out or Path("output", "tiny_ladder_quick" if arguments.quick else "tiny_ladder")
    if out.exists() and not out.is_dir():
        parser.error(f"--out {out} is a file; give the name of a folder")

    with tqdm(total=seeds * len(PAPER), unit="rung", disable=None) as bar:
        results = [Ladder(out, size, seed, bar.update).climb() for seed in range(seeds)]
    table = format_table(results)
    print(table)

    command = shlex.join(["bash", "recipes/tiny_ladder.sh", *sys.argv[1:]])
    measured = [{name: asdict(rung) for name, rung in rungs.items()} for rungs in results]
    report = {"command": command, "size": asdict(size), "seeds": measured}
    write_json(out / "result.json", report)
    write_text_atomically(out / "result.md", f"`{command}`\n\n```text\n{table}\n```\n")
    print(f"tiny ladder → {out / 'result.json'}")


class Ladder:
    """Trains the rungs of one seed, in run folders below `out`. All seeds share the tokenizers and the search.

    Args:
        on_rung: called after each rung.
    """

    def __init__(self, out: Path, size: Size, seed: int, on_rung: Callable[[], object] = lambda: None):
        self._out = out
        self._size = size
        self._seed = seed
        self._on_rung = on_rung
        self._runs = Runs(CONFIG, {"training.output_dir": out / f"seed_{seed}"})
        self._compute = training_flops(load_config(CONFIG, {"training.steps": str(size.steps)}))

    def climb(self) -> dict[str, Rung]:
        """Trains all rungs from the bottom; returns name → rung."""
        base = self._keys_with_tokenizer(self._large_tokenizer(), {"training.steps": self._size.steps})
        rungs = {"base": self._train("base", base)}
        compact = self._keys_with_tokenizer(self._compact_tokenizer(), self._widened(base))
        rungs["tokenizer"] = self._train("tokenizer", self._with_steps(compact))
        searched = compact | self._best_point(compact)
        rungs["architecture"] = self._train("architecture", self._with_steps(searched))
        parent_flops, inherited = self._inherit(searched)
        child = self._with_steps(searched)
        rungs["inheritance"] = self._train("inheritance", child, ["--load", str(inherited)], parent_flops)
        rungs["rounds"] = self._train_rounds(searched, inherited, parent_flops)
        return rungs

    def _keys_with_tokenizer(self, tokenizer: Path, keys: Mapping[str, object]) -> dict[str, str]:
        """Returns the overrides of a run with this tokenizer and a vocabulary of its size."""
        common: dict[str, object] = {
            "training.seed": self._seed,
            "data.tokenizer": tokenizer,
            "model.vocab_size": Tokenizer.load(tokenizer).vocab_size,
        }
        return {key: str(value) for key, value in {**common, **keys}.items()}

    def _large_tokenizer(self) -> Path:
        runs = Runs(CONFIG, {"training.output_dir": self._out})
        return runs.run("large_tokenizer", stages=PREPARE[:1]) / "tokenizer" / "main.model"

    def _compact_tokenizer(self) -> Path:
        folder = self._out / "compact_tokenizer"
        if not (folder / "tokenizer.model").exists():
            options = ["--size", str(self._size.pieces), "--out", str(folder), "--config", CONFIG]
            mindpangu("tiny", "tokenizer", "--tokenizer", str(self._large_tokenizer()), *options)
        return folder / "tokenizer.model"

    def _widened(self, keys: Mapping[str, str]) -> dict[str, int]:
        """Returns the sizes of a wider model with the compact vocabulary and as many parameters.

        Depth and expansion stay the same.
        """
        config = load_config(CONFIG, keys)
        model = config.model
        budget = count_parameters(config).total

        def sizes(width: int) -> dict[str, int]:
            ffn_width = round(width * model.ffn_hidden_size / model.hidden_size / 8) * 8
            return {
                "model.hidden_size": width,
                "model.ffn_hidden_size": ffn_width,
                "model.num_heads": width // HEAD_SIZE,
            }

        def error(width: int) -> int:
            wider = {key: str(value) for key, value in sizes(width).items()}
            compact = {**keys, **wider, "model.vocab_size": str(self._size.pieces)}
            return abs(count_parameters(load_config(CONFIG, compact)).total - budget)

        return sizes(min(range(HEAD_SIZE, 32 * HEAD_SIZE, HEAD_SIZE), key=error))

    def _with_steps(self, keys: Mapping[str, str], share: float = 1.0) -> dict[str, str]:
        """Adds the number of steps that a share of the base's compute allows."""
        steps = steps_within(load_config(CONFIG, keys), share * self._compute)
        return {**keys, "training.steps": str(steps)}

    def _train(self, name: str, keys: Mapping[str, str], options: Sequence[str] = (), apart: float = 0.0) -> Rung:
        folder = self._runs.run(name, keys, options=options, stages=TRAIN)
        config = load_saved_config(folder / "config.yaml")
        return self._measure_rung(config, folder, apart)

    def _best_point(self, keys: Mapping[str, str]) -> dict[str, str]:
        """Returns depth, widths and heads of the best point of a search with as many parameters.

        The search runs with the first seed and is shared by all seeds.
        """
        folder = self._out / "architecture"
        results = folder / "results.json"
        if read_json_object(results).get("failed") != {}:  # the verb retries failed points
            budget = str(count_parameters(load_config(CONFIG, keys)).total)
            options = ["--budget", budget, "--points", str(self._size.points), "--steps", str(self._size.search_steps)]
            ranges = ["--depth", "2:16", "--width", "64:320", "--expansion", "1:4", "--tolerance", "0.05"]
            mindpangu(
                "tiny", "architecture", "--config", CONFIG, *options, *ranges, "--out", str(folder), *as_options(keys)
            )
        best = read_json_object(results)["points"][0]
        return {
            "model.num_layers": str(best["depth"]),
            "model.hidden_size": str(best["width"]),
            "model.ffn_hidden_size": str(best["ffn_width"]),
            "model.num_heads": str(best["num_heads"]),
        }

    def _inherit(self, keys: Mapping[str, str]) -> tuple[float, Path]:
        """Trains a parent of twice the size for the base's steps, and prunes it to the child.

        Returns:
            (FLOPs of the parent's training, folder of the child's checkpoint).
        """
        parent = {**keys, **self._parent_sizes(keys), "training.steps": str(self._size.steps)}
        folder = self._runs.run("parent", parent, stages=TRAIN)
        child = self._with_steps(keys)
        out = folder.parent / "inherited"
        self._runs.run("inheritance", child, stages=PREPARE)
        if not (out / REPORT).exists():  # written last
            shutil.rmtree(out, ignore_errors=True)
            options = ["--calibration-batches", str(self._size.calibration), "--mask-steps", str(self._size.mask_steps)]
            ends = ["--keep-first", "1", "--keep-last", "1"]
            verb = ["tiny", "inherit", "--parent", str(folder), "--out", str(out), *options, *ends]
            self._runs.run("inheritance", child, stages=(verb,))
        return training_flops(load_saved_config(folder / "config.yaml")), out

    def _parent_sizes(self, keys: Mapping[str, str]) -> dict[str, str]:
        """Returns the sizes of a parent with twice the parameters.

        The parent is a quarter wider with the same head size and expansion; its depth makes up the rest.
        """
        child = load_config(CONFIG, keys)
        heads = -(-5 * child.model.num_heads // 4)
        wider = {
            "model.num_heads": str(heads),
            "model.hidden_size": str(heads * HEAD_SIZE),
            "model.ffn_hidden_size": str(child.model.ffn_hidden_size * heads // child.model.num_heads // 8 * 8),
        }
        target = 2 * count_parameters(child).total

        def error(depth: int) -> int:
            parent = load_config(CONFIG, {**keys, **wider, "model.num_layers": str(depth)})
            return abs(count_parameters(parent).total - target)

        depth = min(range(child.model.num_layers, 8 * child.model.num_layers), key=error)
        return wider | {"model.num_layers": str(depth)}

    def _train_rounds(self, keys: Mapping[str, str], inherited: Path, parent_flops: float) -> Rung:
        """Trains the inherited model in two rounds, the second on half of the first's batches, with equal compute."""
        first = self._with_steps(keys, 2 / 3)
        folder = self._runs.folder("rounds")
        if not folder.rounds.exists():
            options = ["--load", str(inherited)]
            self._runs.run("rounds", first, options=options, stages=(*PREPARE, ["train"]))
        parts = str(min(8, int(first["training.steps"])))
        verb = ["tiny", "rounds", "--rounds", "2", "--rate", "0.5", "--parts", parts, "--resume"]
        self._runs.run("rounds", first, stages=(verb, ["evaluate"]))
        config = load_saved_config(folder.config)
        return self._measure_rung(config, folder.root, parent_flops)

    def _measure_rung(self, config: Config, folder: Path, apart: float) -> Rung:
        shards = TokenShards.open(folder / "data")
        domains = read_json(RunFolder(folder).evaluation)["domains"]
        bits = {
            result["domain"]: bits_per_byte(
                result["loss"],
                shards.num_tokens(result["domain"], HELDOUT),
                shards.text_bytes(result["domain"], HELDOUT),
            )
            for result in domains
        }
        self._on_rung()
        return Rung(count_parameters(config).total, config.training.steps, bits, training_flops(config), apart)


def format_table(results: Sequence[Mapping[str, Rung]]) -> str:
    """Formats a table with a row per rung: mean over the seeds, gain on the rung below, and the paper's figures."""
    lines = [
        f"{'rung':>14} {'parameters':>11} {'steps':>7} {'TFLOP':>8} {'apart':>8} {'bits/byte':>10} "
        f"{'gain on the rung below':>24} {'paper':>7} {'gain':>6}"
    ]
    below = None
    for name in PAPER:
        rungs = [seed[name] for seed in results]
        gain = paper_gain = ""
        if below is not None:
            gains = [seed[below].mean - seed[name].mean for seed in results]
            gain = f"{gains[0]:+.4f}" if len(gains) == 1 else str(Interval.from_values(gains))
            paper_gain = f"{PAPER[name] - PAPER[below]:+.2f}"

        first = rungs[0]
        lines.append(
            f"{('' if below is None else '+ ') + name:>14} {in_words(first.parameters):>11} {first.steps:>7,} "
            f"{first.compute / 1e12:>8.2f} {first.apart / 1e12:>8.2f} {np.mean([rung.mean for rung in rungs]):>10.4f} "
            f"{gain:>24} {PAPER[name]:>7.2f} {paper_gain:>6}"
        )
        below = name

    seeds = "one seed" if len(results) == 1 else f"{len(results)} seeds, 95 % intervals of the paired gains"
    lines.append(f"bits/byte: held-out text, mean of the domains, the lower the better ({seeds})")
    lines.append("apart: the parent's training; paper: average score of its 1B model, percent")
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    run_program(main)
