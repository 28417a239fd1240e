"""Runs trainings through the command line. Finished stages are skipped, so a stopped comparison can be resumed."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mindpangu.config import Config, load_config, to_result_inputs
from mindpangu.config.run_folder import RunFolder
from mindpangu.data.corpus import expand_patterns
from mindpangu.files import read_json
from mindpangu.signals import StopOnSignal, StoppedBySignal, exit_code
from mindpangu.stage import ResultFile, hash_files

_NO_KEYS: Mapping[str, object] = {}
STAGES = (["tokenizer", "train"], ["data", "prepare"], ["routing", "build"], ["train"], ["evaluate"])


class Runs:
    """Trainings of one recipe with overrides.

    Args:
        config: YAML file of the recipe.
        overrides: key → value, for all runs.
    """

    def __init__(self, config: str, overrides: Mapping[str, object]):
        self._config = config
        self._overrides = overrides

    def folder(self, name: str) -> RunFolder:
        """Returns the run folder of a run."""
        return RunFolder.from_config(self._load_config(name))

    def result_file(self, name: str, keys: Mapping[str, object] = _NO_KEYS) -> ResultFile:
        """Returns the file of a run's figures; it is current while the configuration and the corpus are unchanged."""
        config = self._load_config(name, keys)
        corpus = hash_files(expand_patterns(config.data.corpus, "data.corpus"))
        inputs = {"config": to_result_inputs(config), "corpus": corpus}
        return ResultFile(RunFolder.from_config(config).root / "measured.json", inputs)

    def run(
        self,
        name: str,
        keys: Mapping[str, object] = _NO_KEYS,
        options: Sequence[str] = (),
        stages: Sequence[Sequence[str]] = STAGES,
    ) -> Path:
        """Runs the stages of a run; returns its folder.

        Args:
            name: name of the run.
            keys: overrides of this run.
            options: further options of `train`, in addition to --resume, e.g. --load DIR.
            stages: words of the verbs.
        """
        for stage in stages:
            extra = ["--resume", *options] if stage[0] == "train" else []
            mindpangu(*stage, *extra, "--config", self._config, *as_options(self._run_keys(name, keys)))
        return self.folder(name).root

    def losses(self, name: str) -> dict[str, float]:
        """Returns domain → held-out loss in nats, as `evaluate` wrote it."""
        result = read_json(self.folder(name).evaluation)
        return {domain["domain"]: domain["loss"] for domain in result["domains"]}

    def mean_loss(self, name: str) -> float:
        """Returns the held-out loss in nats, mean of the domains."""
        return float(np.mean(list(self.losses(name).values())))

    def _load_config(self, name: str, keys: Mapping[str, object] = _NO_KEYS) -> Config:
        return load_config(self._config, self._run_keys(name, keys))

    def _run_keys(self, name: str, keys: Mapping[str, object]) -> dict[str, str]:
        return {key: str(value) for key, value in {**self._overrides, **keys, "training.run_name": name}.items()}


def mindpangu(*words: str) -> None:
    """Runs a verb and shows its output only if it fails. On a signal, passes it on, lets the verb save, and exits."""
    command = [sys.executable, "-m", "mindpangu", *words]
    pipe = subprocess.PIPE
    # in a session of its own, the verb gets a signal once, even if it was sent to the whole group
    with (
        StopOnSignal(patience=0),
        subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process,
    ):
        try:
            printed, errors = process.communicate()
        except StoppedBySignal as stopped:
            process.send_signal(stopped.signum)
            process.communicate()
            print("stopped; run the same command to resume", file=sys.stderr)
            sys.exit(exit_code(stopped.signum))
    if process.returncode:
        sys.exit(f"mindpangu {' '.join(words)}\n{printed}{errors}")


def as_options(keys: Mapping[str, object]) -> list[str]:
    """Returns overrides as command-line options."""
    return [word for key, value in keys.items() for word in (f"--{key}", str(value))]
