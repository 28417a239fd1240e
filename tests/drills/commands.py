"""The command line and the output of every verb that writes something in a sandbox (`sandboxes.py`).

Paths are relative to the sandbox, which is the working directory. So the same verb writes the same bytes in every
sandbox, even where a file records the command that made it.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contents import content_of, losses_of
from verbs import Outcome, options, run_verb

from tests.conftest import TINY

RUN = TINY | {
    "data.corpus": "[corpus.jsonl]",
    "training.output_dir": ".",
    "training.run_name": "run",
    "lr_scheduler.decay_steps": "8",
}
"""Configuration of the sparse run."""

DENSE = RUN | {"training.run_name": "dense", "model.rre_layers": "0"}
"""Configuration of the dense run, which only --drills has."""

CHILD = DENSE | {
    "model.num_layers": "2",
    "model.hidden_size": "8",
    "model.num_heads": "1",
    "model.ffn_hidden_size": "10",
}
"""Configuration of a smaller model that inherits from the dense one."""


@dataclass(frozen=True)
class Command:
    """A verb that writes something.

    Attributes:
        words: the command line.
        out: its result, a file or a folder.
        also: prefixes of the other paths that it writes.
        again: what a second start does: it "skips" the work, "refuses" to overwrite a result, or "resumes".
        resume: the option with which it is started again, if any.
        result: reads from `out` what must be the same however often the verb was interrupted.
        needs_dense: True if it reads the dense run.
        compiles: True if it compiles a model, which takes seconds instead of tenths of a second.
    """

    words: tuple[str, ...]
    out: str = "out"
    also: tuple[str, ...] = ()
    again: str = "refuses"
    resume: tuple[str, ...] = ()
    result: Callable[[Path], Any] = content_of
    needs_dense: bool = False
    compiles: bool = False

    @property
    def is_quick(self) -> bool:
        """True if the quick tests run it."""
        return not (self.compiles or self.needs_dense)

    @property
    def group(self) -> str:
        """The name under which the attempts with this verb and similar ones are counted."""
        if self.again == "skips":
            return "stages"
        return "checkpoints and exports" if self.again == "refuses" else "trainings and searches"

    def clear(self, box: Path) -> None:
        """Removes everything that it writes from a sandbox."""
        for path in [box / self.out, *(found for beginning in self.also for found in box.glob(f"{beginning}*"))]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def sources(self, box: Path) -> dict[str, str]:
        """Returns the content of everything in a sandbox that the verb must not change."""
        writes = tuple(f"{box.name}/{path}" for path in (self.out, *self.also))
        return {name: digest for name, digest in content_of(box).items() if not name.startswith(writes)}

    def require_nothing_half_written(self, box: Path, whole: dict[str, str]) -> None:
        """Asserts that every file of its result is complete after an interruption.

        Files to resume from are not its result; whether it can resume from them shows when it finishes.

        Args:
            whole: the content of the complete result.
        """
        if self.again != "resumes":
            found = content_of(box / self.out)
            assert found.items() <= whole.items(), f"half-written: {sorted(dict(found.items() - whole.items()))}"

    def finish(self, box: Path, log: Path, whole: dict[str, str]) -> Outcome:
        """Starts the verb again after an interruption, so that it completes its result. Returns how it ended.

        A checkpoint or an export that already exists is complete. It is removed first, because the verb would refuse to
        overwrite it.
        """
        out = box / self.out
        if self.again == "refuses" and (any(out.glob("iteration_*")) or content_of(out) == whole):
            self.clear(box)
        return run_verb([*self.words, *self.resume], log, cwd=box)


def _finetuning(folder: Path) -> tuple:
    return losses_of(folder), json.loads((folder / "finetune.json").read_text("utf-8"))


def _rounds(folder: Path) -> tuple:
    return losses_of(folder), content_of(folder / "rounds")


def _trials(folder: Path) -> dict[str, float]:
    """Returns the bits per byte of every trial of a search; speeds differ each time."""
    assert (folder / "results.json").exists()
    files = folder.glob("*/trial.json")
    return {file.parent.name: json.loads(file.read_text("utf-8"))["bits_per_byte"] for file in files}


def _stage(words: str, out: str, *also: str, compiles: bool = False) -> Command:
    also = ("run/routing.png", "run/report.md", "run/loss.png", *also)
    return Command((*words.split(), *options(RUN)), f"run/{out}", also, "skips", compiles=compiles)


def _lifecycle(words: str, overrides: dict[str, str] | None = None, **more: Any) -> Command:
    return Command((*words.split(), "--out", "out", *options(overrides or {})), **more)


_TRAINING = ("run/latest", "run/metrics.jsonl", "run/config.yaml", "run/log", "run/report.md", "run/loss.png")

COMMANDS = {
    "tokenizer train": _stage("tokenizer train", "tokenizer"),
    "data prepare": _stage("data prepare", "data"),
    "routing build": _stage("routing build", "routing"),
    "evaluate": _stage("evaluate", "evaluation.json", compiles=True),
    "generate --every-domain": _stage("generate --every-domain --max-new-tokens 4", "samples.json", compiles=True),
    "tokenizer extend": Command(
        ("tokenizer", "extend", "--model", "run/tokenizer/main.model", "--out", "out/extended.model"), again="skips"
    ),
    "extract": _lifecycle("extract --domains zh,en --checkpoint run"),
    "extract --verify": _lifecycle("extract --domains zh,en --checkpoint run --verify"),
    "extract --export": _lifecycle("extract --domains zh --export --checkpoint run"),
    "extract --weights-only": _lifecycle("extract --domains zh,en --weights-only --checkpoint run"),
    "extract --vocabulary-of": _lifecycle("extract --domains zh,en --vocabulary-of run --checkpoint run"),
    "experts add --from": _lifecycle("experts add poetry --from zh --checkpoint run"),
    "experts add --fresh": _lifecycle("experts add poetry --fresh --checkpoint run"),
    "experts add --from-dense": _lifecycle("experts add poetry --from-dense dense --checkpoint run", needs_dense=True),
    "experts copy": _lifecycle("experts copy zh --from en --checkpoint run"),
    "experts replace": _lifecycle("experts replace zh --with run --with-domain code --checkpoint run"),
    "experts remove": _lifecycle("experts remove code --checkpoint run"),
    "experts resize": _lifecycle("experts resize zh --experts 2 --checkpoint run"),
    "upcycle": _lifecycle("upcycle --parent dense", RUN, needs_dense=True),
    "convert to-pangu-alpha": _lifecycle("convert to-pangu-alpha --checkpoint dense", needs_dense=True),
    "convert from-pangu-alpha": _lifecycle(
        "convert from-pangu-alpha --source release/pangu_alpha.ckpt --tokenizer release/vocab.model "
        "--config dense/config.yaml",
        needs_dense=True,
    ),
    "tiny tokenizer": _lifecycle("tiny tokenizer --checkpoint run --size 400"),
    "tiny inherit": _lifecycle(
        "tiny inherit --parent dense --neurons l2 --calibration-batches 1 --keep-first 1 --keep-last 1",
        CHILD,
        needs_dense=True,
        compiles=True,
    ),
    "train": Command(
        ("train", *options(RUN)),
        out="run/checkpoint",
        also=_TRAINING,
        again="resumes",
        resume=("--resume",),
        result=lambda checkpoints: losses_of(checkpoints.parent),
        compiles=True,
    ),
    "finetune": Command(
        tuple(
            "finetune --checkpoint run --data records.jsonl --train experts:zh --answers 1 --training.steps 4 "
            "--training.run_name out".split()
        ),
        again="resumes",
        resume=("--resume",),
        result=_finetuning,
        compiles=True,
    ),
    "tiny rounds": Command(
        ("tiny", "rounds", "--checkpoint", "dense", "--parts", "2", "--training.run_name", "out"),
        again="resumes",
        resume=("--resume",),
        result=_rounds,
        needs_dense=True,
        compiles=True,
    ),
    "tiny architecture": _lifecycle(
        "tiny architecture --budget 30K --points 2 --depth 1:2 --width 8:32 --head-size 8 --tolerance 0.5 "
        "--processes 2",
        DENSE,
        again="resumes",
        result=_trials,
        needs_dense=True,
        compiles=True,
    ),
    "tiny batch-size": _lifecycle(
        "tiny batch-size --batches 4,8 --rates 1e-3,2e-3 --tokens 512 --processes 2",
        DENSE,
        again="resumes",
        result=_trials,
        needs_dense=True,
        compiles=True,
    ),
}

READERS = {
    "config": ("config", "--config", "run/config.yaml"),
    "experts list": ("experts", "list", "--checkpoint", "run"),
    "routing stats": ("routing", "stats", *options(RUN)),
    "generate --prompt": tuple(
        "generate --checkpoint run --domain zh --prompt 打开 --max-new-tokens 4 --training.run_name run".split()
    ),
}
"""Verbs that only print, except that `routing stats` draws routing.png."""
