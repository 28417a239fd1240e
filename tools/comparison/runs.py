"""Run folders by command line: every stage is skipped where it is done, so a comparison that was stopped goes on."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from mindpangu.config import Config, load_config
from mindpangu.config.run_folder import RunFolder
from mindpangu.stage import ResultFile

STAGES = (["tokenizer", "train"], ["data", "prepare"], ["routing", "build"], ["train"], ["evaluate"])


class Runs:
    """Trainings of one recipe with overrides.

    Args:
        config: YAML file of the recipe. overrides: words of the command line for all runs.
    """

    def __init__(self, config: str, overrides: Sequence[str]):
        self._config, self._overrides = config, [part for word in overrides for part in _split(word)]

    def folder(self, name: str) -> RunFolder:
        return RunFolder.of(self._config_of(name))

    def measured(self, name: str, *words: str) -> ResultFile:
        """Where the figures of a run are kept; they are current if its configuration is the one they come from."""
        config = self._config_of(name, *words)
        return ResultFile(RunFolder.of(config).root / "measured.json", {"config": asdict(config)})

    def run(self, name: str, *words: str, options: Sequence[str] = (), stages: Sequence[list[str]] = STAGES) -> Path:
        """Takes a run through its stages; returns its folder.

        Args:
            words: overrides of this run. options: of `train`, beside --resume, e.g. --load DIR.
        """
        for stage in stages:
            extra = ["--resume", *options] if stage == ["train"] else []
            mindpangu(*stage, *extra, "--config", self._config, *self._overrides, *words, "--training.run_name", name)
        return self.folder(name).root

    def losses(self, name: str) -> dict[str, float]:
        """domain → held-out loss in nats, as `evaluate` wrote it."""
        result = json.loads(self.folder(name).evaluation.read_text(encoding="utf-8"))
        return {domain["domain"]: domain["loss"] for domain in result["domains"]}

    def mean_loss(self, name: str) -> float:
        """Held-out loss in nats, mean of the domains."""
        return float(np.mean(list(self.losses(name).values())))

    def _config_of(self, name: str, *words: str) -> Config:
        words = (*self._overrides, *words, "--training.run_name", name)
        pairs = {key.removeprefix("--"): value for key, value in zip(words[::2], words[1::2], strict=True)}
        return load_config(self._config, pairs)


def mindpangu(*words: str) -> None:
    """Runs a verb; its messages are shown only if it fails. Ctrl-C lets it save its checkpoint and ends the program."""
    command = [sys.executable, "-m", "mindpangu", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            printed, errors = process.communicate()
        except KeyboardInterrupt:  # the verb has it too
            process.communicate()
            sys.exit("stopped; the same command goes on")
    if process.returncode:
        sys.exit(f"mindpangu {' '.join(words)}\n{printed}{errors}")


def _split(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--") else [word]
