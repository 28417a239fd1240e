"""Sandboxes: folders with everything that the verbs of mindpangu read, in which a drill may break things.

run/             a run folder of a tiny PanGu-Σ: prepared and trained; with --drills also evaluated and sampled
dense/           the same without experts             (with --drills)
release/         the dense model in PanGu-α's format  (with --drills)
corpus.jsonl     the text of both
records.jsonl    instruction records, for fine-tuning
"""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import COMMANDS, DENSE, RUN, Command
from contents import content_of
from verbs import options, run_verb

from mindpangu.locks import locked

_STEPS = {
    "run": [["tokenizer", "train"], ["data", "prepare"], ["routing", "build"], ["train"]],
    "run, more": [["evaluate"], ["generate", "--every-domain", "--max-new-tokens", "4"]],
    "dense": [["tokenizer", "train"], ["data", "prepare"], ["train"]],
}
_CONVERT = ["convert", "to-pangu-alpha", "--checkpoint", "dense", "--out", "release"]


@dataclass(frozen=True)
class Undisturbed:
    """The behaviour of a verb that nothing disturbs.

    Attributes:
        box: the sandbox after the verb has run. Do not change it.
        seconds: how long the verb took.
        whole: the content of its output.
        result: what must be the same however often the verb is interrupted.
        sources: the content of everything that it must not change.
    """

    box: Path
    seconds: float
    whole: dict[str, str]
    result: Any
    sources: dict[str, str]


class Sandboxes:
    """Makes sandboxes, and runs verbs in them once to see what they do undisturbed.

    Args:
        folder: a folder that all test processes share; each sandbox in it is made once.
        corpus: the corpus.
        for_drills: True to also make the parts that only --drills needs.
    """

    def __init__(self, folder: Path, corpus: Path, for_drills: bool):
        self._folder = folder
        self._corpus = corpus
        self._for_drills = for_drills
        self._undisturbed: dict[str, Undisturbed] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def new(self, parent: Path, cleared_of: Command | None = None, after: str | None = None) -> Path:
        """Replaces parent / "box" with a new sandbox, and returns it.

        Args:
            cleared_of: remove the output of this command.
            after: name of the command that has already run in the sandbox; None for a pristine one.
        """
        source = self.undisturbed(after).box if after else self._once("pristine", self._make)
        box = parent / "box"
        shutil.rmtree(box, ignore_errors=True)
        shutil.copytree(source, box)
        if cleared_of:
            cleared_of.clear(box)
        return box

    def undisturbed(self, name: str) -> Undisturbed:
        """Returns what a command does if nothing disturbs it."""
        command = COMMANDS[name]

        def make(folder: Path) -> None:
            box = self.new(folder, cleared_of=command)
            outcome = run_verb(command.words, folder / "log.txt", cwd=box)
            outcome.require_success()
            (folder / "seconds.json").write_text(json.dumps(outcome.seconds))

        if name not in self._undisturbed:
            folder = self._once(re.sub(r"\W+", "_", name), make)
            box = folder / "box"
            self._undisturbed[name] = Undisturbed(
                box,
                json.loads((folder / "seconds.json").read_text()),
                content_of(box / command.out),
                command.result(box / command.out),
                command.sources(box),
            )
        return self._undisturbed[name]

    def _once(self, name: str, make: Callable[[Path], None]) -> Path:
        """Returns a folder, which the first test process that needs it makes."""
        made = self._folder / name
        with locked(made, wait=math.inf):
            if not made.exists():
                unfinished = self._folder / f"making_{name}"
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                make(unfinished)
                unfinished.rename(made)
        return made

    def _make(self, box: Path) -> None:
        shutil.copy(self._corpus, box / "corpus.jsonl")
        record = {"domain": "zh", "task": "qa", "question": "打开", "answer": "窗口"}
        records = (json.dumps(record | {"question": "打开" * (1 + number % 3)}) + "\n" for number in range(24))
        (box / "records.jsonl").write_text("".join(records))
        for words in _STEPS["run"]:
            self._run(box, [*words, *options(RUN)])
        if self._for_drills:
            for words in _STEPS["run, more"]:
                self._run(box, [*words, *options(RUN)])
            for words in _STEPS["dense"]:
                self._run(box, [*words, *options(DENSE)])
            self._run(box, _CONVERT)

    def _run(self, box: Path, words: list[str]) -> None:
        run_verb(words, self._folder / "log.txt", cwd=box).require_success()
