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
    """What a verb does if nothing disturbs it.

    Attributes:
        box: a sandbox after it. Do not change it.
        seconds: how long it took.
        whole: the content of what it wrote.
        result: what must be the same, however the verb got there.
        sources: the content of what it must not change.
    """

    box: Path
    seconds: float
    whole: dict[str, str]
    result: Any
    sources: dict[str, str]


class Sandboxes:
    """Makes sandboxes, and runs verbs in them once to see what they do undisturbed.

    Args:
        folder: a folder that all test processes share; each thing in it is made once.
        corpus: the corpus.
        all_of_it: True to make also the parts that only --drills needs.
    """

    def __init__(self, folder: Path, corpus: Path, all_of_it: bool):
        self._folder = folder
        self._corpus = corpus
        self._all_of_it = all_of_it
        self._undisturbed: dict[str, Undisturbed] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def new(self, parent: Path, cleared_of: Command | None = None, after: str | None = None) -> Path:
        """Replaces parent / "box" by a new sandbox, and returns it.

        Args:
            cleared_of: without what this command writes.
            after: as it is after this command.
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
        """Returns a folder that the first test process to need it makes."""
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
        if self._all_of_it:
            for words in _STEPS["run, more"]:
                self._run(box, [*words, *options(RUN)])
            for words in _STEPS["dense"]:
                self._run(box, [*words, *options(DENSE)])
            self._run(box, _CONVERT)

    def _run(self, box: Path, words: list[str]) -> None:
        run_verb(words, self._folder / "log.txt", cwd=box).require_success()
