"""Run folders by command line: every stage is skipped where it is done, so a comparison that was stopped goes on."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from mindpangu.config import Config, load_config
from mindpangu.config.run_folder import RunFolder
from mindpangu.data.corpus import expand_patterns
from mindpangu.files import read_json
from mindpangu.stage import ResultFile, hash_files

_NONE: Mapping[str, object] = {}
STAGES = (["tokenizer", "train"], ["data", "prepare"], ["routing", "build"], ["train"], ["evaluate"])


class Runs:
    """Trainings of one recipe with overrides.

    Args:
        config: YAML file of the recipe. overrides: key → value, for all runs.
    """

    def __init__(self, config: str, overrides: Mapping[str, object]):
        self._config, self._overrides = config, overrides

    def folder(self, name: str) -> RunFolder:
        return RunFolder.from_config(self._config_of(name))

    def measured(self, name: str, keys: Mapping[str, object] = _NONE) -> ResultFile:
        """Where the figures of a run are kept; they are current if its configuration and corpus are the ones they come
        from."""
        config = self._config_of(name, keys)
        corpus = hash_files(expand_patterns(config.data.corpus, "data.corpus"))
        return ResultFile(
            RunFolder.from_config(config).root / "measured.json", {"config": asdict(config), "corpus": corpus}
        )

    def run(
        self,
        name: str,
        keys: Mapping[str, object] = _NONE,
        options: Sequence[str] = (),
        stages: Sequence[Sequence[str]] = STAGES,
    ) -> Path:
        """Takes a run through its stages; returns its folder.

        Args:
            keys: overrides of this run. options: of `train`, beside --resume, e.g. --load DIR.
        """
        for stage in stages:
            extra = ["--resume", *options] if stage[0] == "train" else []
            mindpangu(*stage, *extra, "--config", self._config, *as_words(self._keys_of(name, keys)))
        return self.folder(name).root

    def losses(self, name: str) -> dict[str, float]:
        """domain → held-out loss in nats, as `evaluate` wrote it."""
        result = read_json(self.folder(name).evaluation)
        return {domain["domain"]: domain["loss"] for domain in result["domains"]}

    def mean_loss(self, name: str) -> float:
        """Held-out loss in nats, mean of the domains."""
        return float(np.mean(list(self.losses(name).values())))

    def _config_of(self, name: str, keys: Mapping[str, object] = _NONE) -> Config:
        return load_config(self._config, self._keys_of(name, keys))

    def _keys_of(self, name: str, keys: Mapping[str, object]) -> dict[str, str]:
        return {key: str(value) for key, value in {**self._overrides, **keys, "training.run_name": name}.items()}


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


def as_words(keys: Mapping[str, object]) -> list[str]:
    """Overrides as words of a command line."""
    return [word for key, value in keys.items() for word in (f"--{key}", str(value))]
