"""The layout of a run folder, output/<run>/…, as MindSpore users know it."""

import os
from dataclasses import dataclass
from pathlib import Path

from mindpangu.config.schema import Config, TrainingConfig

_CHECKPOINTS = "checkpoint"
_MANIFEST = "manifest.json"  # in each checkpoint


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run folder. Creates nothing."""

    root: Path

    @staticmethod
    def from_config(config: Config) -> "RunFolder":
        """Returns the run folder given by `training.output_dir` and `training.run_name`."""
        return RunFolder(Path(config.training.output_dir) / config.training.run_name)

    @staticmethod
    def of_checkpoint(checkpoint: Path) -> "RunFolder | None":
        """Returns the run folder that a checkpoint is in, or None if it is elsewhere, like the output of `extract`.

        Only the path counts, not the configuration in the checkpoint, because the run may have been moved, or may come
        from somebody else.
        """
        parent = _with_name(_with_name(checkpoint).parent)
        root = _with_name(parent.parent)
        return RunFolder(root) if parent.name == _CHECKPOINTS and root.name else None

    @staticmethod
    def settings_of_saved(folder: Path) -> dict[str, str]:
        """Returns overrides for a configuration that was saved in a run folder or in a checkpoint, so that
        `from_config` returns that run folder where it is now. The saved values say where it was, perhaps on another
        machine.

        A checkpoint outside a run folder keeps the name of its run, in the default output folder.
        """
        is_checkpoint = (folder / _MANIFEST).exists()
        run = RunFolder.of_checkpoint(folder) if is_checkpoint else RunFolder(_with_name(folder))
        if run is None:
            return {"training.output_dir": TrainingConfig().output_dir}
        parent = str(run.root.parent)
        looks_like_home = parent.startswith("~")  # but it is the folder's real name, which must not be expanded
        parent = f"./{parent}" if looks_like_home else parent
        return {"training.output_dir": parent, "training.run_name": run.root.name}

    @staticmethod
    def holds(path: Path) -> bool:
        """True if a configuration file was saved to a run folder or a checkpoint rather than written by a user."""
        siblings = ("metrics.jsonl", _MANIFEST, f"{_CHECKPOINTS}/iteration_*")
        return path.name == "config.yaml" and any(any(path.parent.glob(name)) for name in siblings)

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def routing(self) -> Path:
        return self.root / "routing"

    @property
    def checkpoints(self) -> Path:
        return self.root / _CHECKPOINTS

    @property
    def latest(self) -> Path:
        return self.root / "latest_checkpointed_iteration.txt"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation.json"

    def task_result(self, task: str) -> Path:
        """Returns the file of a task's result."""
        return self.root / "evaluation" / f"{task}.json"

    @property
    def finetuning(self) -> Path:
        return self.root / "finetune.json"

    @property
    def rounds(self) -> Path:
        """Folder of the losses and samples of multiple-round training."""
        return self.root / "rounds"

    @property
    def samples(self) -> Path:
        return self.root / "samples.json"

    @property
    def report(self) -> Path:
        return self.root / "report.md"

    @property
    def loss_plot(self) -> Path:
        return self.root / "loss.png"

    @property
    def load_plot(self) -> Path:
        return self.root / "routing.png"

    @property
    def stopped(self) -> Path:
        """File with the exit code of a training that a signal stopped; msrun does not pass exit codes on."""
        return self.root / ".stopped"

    @property
    def watch(self) -> Path:
        """Folder in which the ranks report their status to each other."""
        return self.root / ".watch"

    def log(self, rank: int = 0) -> Path:
        return self.root / "log" / f"rank_{rank}"


def _with_name(folder: Path) -> Path:
    """Returns a path to the folder that ends in its name, unlike "." and ".."."""
    return folder if folder.name not in ("", "..") else Path(os.path.realpath(folder))
