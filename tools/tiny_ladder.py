"""The ladder of the tiny-model paper (arXiv 2402.02791) on real text: base → + compact tokenizer → + architecture →
+ inheritance → + rounds, each rung on top of the one before, at equal training compute.

    bash recipes/tiny_ladder.sh              # hours: three seeds, with intervals
    bash recipes/tiny_ladder.sh --quick      # minutes: one seed, a few steps; shows that everything runs, and no more

Every part is a verb of the command line and is skipped where it is done, so a ladder that was stopped goes on.
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
from comparison.runs import Runs, as_words, mindpangu

from mindpangu.config import Config, load_config
from mindpangu.config.run_folder import RunFolder
from mindpangu.data import HELDOUT, TokenShards
from mindpangu.evaluation.bits_per_byte import bits_per_byte
from mindpangu.files import read_json, read_json_object, write_json, write_text_atomically
from mindpangu.model.parameter_count import count_parameters, in_words
from mindpangu.tiny.compute import flops_of_training, steps_within
from mindpangu.tiny.inheritance.report import REPORT
from mindpangu.tokenizer import Tokenizer

CONFIG = "recipes/cpu_tiny.yaml"
PAPER = {"base": 42.41, "tokenizer": 44.11, "architecture": 46.53, "inheritance": 49.79, "rounds": 51.28}
"""Average score of the paper's 1B model over ten tasks, in percent, rung by rung."""

PREPARE = (["tokenizer", "train"], ["data", "prepare"])
TRAIN = (*PREPARE, ["train"], ["evaluate"])
HEAD_SIZE = 32


@dataclass(frozen=True)
class Size:
    """What a ladder costs.

    Attributes:
        steps: of the base; the others take as many as the same compute gives.
        pieces: of the compact tokenizer.
        points, search_steps: of the search for the architecture.
        calibration, mask_steps: batches by which the parent's parts are judged, steps of its learned mask.
    """

    steps: int
    pieces: int
    points: int
    search_steps: int
    calibration: int
    mask_steps: int


FULL, QUICK = Size(800, 5000, 12, 150, 16, 200), Size(40, 5000, 3, 20, 4, 20)


@dataclass(frozen=True)
class Rung:
    """One model of the ladder.

    Attributes:
        parameters, steps: of it. bits: held-out bits per byte, domain → value.
        compute: operations of its training. apart: operations that are counted apart: the parent's training.
    """

    parameters: int
    steps: int
    bits: Mapping[str, float]
    compute: float
    apart: float = 0.0

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.bits.values())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and a few steps: the mechanics only")
    add_seeds(parser, default="3, with --quick 1")
    parser.add_argument("--out", type=Path, help="folder; default: output/tiny_ladder, with --quick …_quick")
    arguments = parser.parse_args()
    size, seeds = (QUICK, 1) if arguments.quick else (FULL, 3)
    seeds = arguments.seeds or seeds
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
    """The rungs of one seed, in run folders below `out`; tokenizers and the search are shared by all seeds.

    Args:
        on_rung: called when a rung is measured.
    """

    def __init__(self, out: Path, size: Size, seed: int, on_rung: Callable[[], object] = lambda: None):
        self._out, self._size, self._seed, self._on_rung = out, size, seed, on_rung
        self._runs = Runs(CONFIG, {"training.output_dir": out / f"seed_{seed}"})
        self._compute = flops_of_training(load_config(CONFIG, {"training.steps": str(size.steps)}))

    def climb(self) -> dict[str, Rung]:
        """Name → rung, from the bottom."""
        base = self._words(self._large_tokenizer(), {"training.steps": self._size.steps})
        rungs = {"base": self._train("base", base)}
        compact = self._words(self._compact_tokenizer(), self._as_large_as(base))
        rungs["tokenizer"] = self._train("tokenizer", self._with_steps(compact))
        tweaked = compact | self._best_point(compact)
        rungs["architecture"] = self._train("architecture", self._with_steps(tweaked))
        parent, inherited = self._inherit(tweaked)
        child = self._with_steps(tweaked)
        rungs["inheritance"] = self._train("inheritance", child, ["--load", str(inherited)], parent)
        rungs["rounds"] = self._rounds(tweaked, inherited, parent)
        return rungs

    def _words(self, tokenizer: Path, keys: Mapping) -> dict[str, str]:
        """Overrides of a run: a tokenizer with as many rows as it has pieces."""
        rows = Tokenizer.load(tokenizer).vocab_size
        words = {"training.seed": self._seed, "data.tokenizer": tokenizer}
        return {key: str(value) for key, value in (words | {"model.vocab_size": rows} | dict(keys)).items()}

    def _large_tokenizer(self) -> Path:
        runs = Runs(CONFIG, {"training.output_dir": self._out})
        return runs.run("large_tokenizer", stages=PREPARE[:1]) / "tokenizer" / "main.model"

    def _compact_tokenizer(self) -> Path:
        folder = self._out / "compact_tokenizer"
        if not (folder / "tokenizer.model").exists():
            words = ["--size", str(self._size.pieces), "--out", str(folder), "--config", CONFIG]
            mindpangu("tiny", "tokenizer", "--tokenizer", str(self._large_tokenizer()), *words)
        return folder / "tokenizer.model"

    def _as_large_as(self, words: Mapping[str, str]) -> dict[str, int]:
        """The same depth and expansion, wider: as many parameters as a model of a larger vocabulary."""
        budget, model = count_parameters(load_config(CONFIG, words)).total, load_config(CONFIG, words).model

        def sizes(width: int) -> dict[str, int]:
            inner = round(width * model.ffn_hidden_size / model.hidden_size / 8) * 8
            return {"model.hidden_size": width, "model.ffn_hidden_size": inner, "model.num_heads": width // HEAD_SIZE}

        def error(width: int) -> int:
            keys = {key: str(value) for key, value in sizes(width).items()}
            compact = dict(words) | keys | {"model.vocab_size": str(self._size.pieces)}
            return abs(count_parameters(load_config(CONFIG, compact)).total - budget)

        return sizes(min(range(HEAD_SIZE, 32 * HEAD_SIZE, HEAD_SIZE), key=error))

    def _with_steps(self, words: Mapping[str, str], share: float = 1.0) -> dict[str, str]:
        """As many steps as a share of the base's compute gives."""
        return dict(words) | {"training.steps": str(steps_within(load_config(CONFIG, words), share * self._compute))}

    def _train(self, name: str, words: Mapping[str, str], options: Sequence[str] = (), apart: float = 0.0) -> Rung:
        folder = self._runs.run(name, words, options=options, stages=TRAIN)
        config = load_config(folder / "config.yaml")
        return self._rung(config, folder, apart)

    def _best_point(self, words: Mapping[str, str]) -> dict[str, str]:
        """Depth, widths and heads of the best point of a search at the same number of parameters; of the first seed."""
        folder = self._out / "architecture"
        results = folder / "results.json"
        if read_json_object(results).get("failed") != {}:  # the verb tries the points again that failed
            budget = str(count_parameters(load_config(CONFIG, words)).total)
            options = ["--budget", budget, "--points", str(self._size.points), "--steps", str(self._size.search_steps)]
            ranges = ["--depth", "2:16", "--width", "64:320", "--expansion", "1:4", "--tolerance", "0.05"]
            mindpangu(
                "tiny", "architecture", "--config", CONFIG, *options, *ranges, "--out", str(folder), *as_words(words)
            )
        best = read_json_object(results)["points"][0]
        return {
            "model.num_layers": str(best["depth"]),
            "model.hidden_size": str(best["width"]),
            "model.ffn_hidden_size": str(best["ffn_width"]),
            "model.num_heads": str(best["num_heads"]),
        }

    def _inherit(self, words: Mapping[str, str]) -> tuple[float, Path]:
        """Trains a parent of twice the size as long as the base; (its compute, the child's first checkpoint)."""
        parent = dict(words) | self._parent_of(words) | {"training.steps": str(self._size.steps)}
        folder = self._runs.run("parent", parent, stages=TRAIN)
        child = self._with_steps(words)
        out = folder.parent / "inherited"
        self._runs.run("inheritance", child, stages=PREPARE)
        if not (out / REPORT).exists():  # written last
            shutil.rmtree(out, ignore_errors=True)
            options = ["--calibration-batches", str(self._size.calibration), "--mask-steps", str(self._size.mask_steps)]
            ends = ["--keep-first", "1", "--keep-last", "1"]
            verb = ["tiny", "inherit", "--parent", str(folder), "--out", str(out), *options, *ends]
            self._runs.run("inheritance", child, stages=(verb,))
        return flops_of_training(load_config(folder / "config.yaml")), out

    def _parent_of(self, words: Mapping[str, str]) -> dict[str, str]:
        """A quarter wider, with the same heads and expansion, and as deep as twice the parameters take."""
        child = load_config(CONFIG, words)
        heads = -(-5 * child.model.num_heads // 4)
        wider = {
            "model.num_heads": str(heads),
            "model.hidden_size": str(heads * HEAD_SIZE),
            "model.ffn_hidden_size": str(child.model.ffn_hidden_size * heads // child.model.num_heads // 8 * 8),
        }
        target = 2 * count_parameters(child).total

        def error(depth: int) -> int:
            keys = wider | {"model.num_layers": str(depth)}
            return abs(count_parameters(load_config(CONFIG, dict(words) | keys)).total - target)

        depth = min(range(child.model.num_layers, 8 * child.model.num_layers), key=error)
        return wider | {"model.num_layers": str(depth)}

    def _rounds(self, words: Mapping[str, str], inherited: Path, parent: float) -> Rung:
        """Two rounds of the inherited model, the second on half of the batches of the first: together one training."""
        first = self._with_steps(words, 2 / 3)
        folder = self._runs.folder("rounds")
        if not folder.rounds.exists():
            options = ["--load", str(inherited)]
            self._runs.run("rounds", first, options=options, stages=(*PREPARE, ["train"]))
        parts = str(min(8, int(first["training.steps"])))
        verb = ["tiny", "rounds", "--rounds", "2", "--rate", "0.5", "--parts", parts, "--resume"]
        self._runs.run("rounds", first, stages=(verb, ["evaluate"]))
        config = load_config(folder.config)
        return self._rung(config, folder.root, parent)

    def _rung(self, config: Config, folder: Path, apart: float) -> Rung:
        shards = TokenShards.open(folder / "data")
        found = read_json(RunFolder(folder).evaluation)["domains"]
        bits = {
            each["domain"]: bits_per_byte(
                each["loss"], shards.num_tokens(each["domain"], HELDOUT), shards.text_bytes(each["domain"], HELDOUT)
            )
            for each in found
        }
        self._on_rung()
        return Rung(count_parameters(config).total, config.training.steps, bits, flops_of_training(config), apart)


def format_table(results: Sequence[Mapping[str, Rung]]) -> str:
    """A row for each rung: the mean of the seeds, what it gains on the rung below, and the paper's beside it."""
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
    main()
