"""Taking a finished first round over from another run folder. No MindSpore is loaded."""

import shutil
from collections.abc import Callable

from mindpangu.checkpoint import CheckpointReader, clean_interrupted, refuse_differences
from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder
from mindpangu.errors import TrainingError
from mindpangu.files import link_folder
from mindpangu.tiny.rounds.files import RoundSample, sample_file
from mindpangu.tiny.rounds.progress import RoundsProgress


def adopt(source: CheckpointReader, config: Config, log: Callable[[str], None] = print) -> None:
    """Puts a finished first round into the run folder: its checkpoint, tokenizer, data, tables and metrics.

    Files that never change are hard links where the file system has them. A run folder that has it already stays.

    Raises:
        CheckpointError: it was trained with other settings.
        TrainingError: the checkpoint is not the end of a first round, its run folder lacks something, or the run
            folder holds another training.
    """
    folder, theirs = RunFolder.from_config(config), RunFolder(source.folder.parent.parent)
    if folder.root.resolve() == theirs.root.resolve():
        return
    progress = RoundsProgress.from_checkpoint(source)
    if progress.round != 1:
        raise TrainingError(
            f"{source.folder} is of round {progress.round} already; give the checkpoint of round 1, as when its rounds "
            f"began, and --training.run_name {theirs.root.name} to go on there"
        )
    if source.step != config.training.steps:
        raise TrainingError(
            f"{source.folder} is of step {source.step}; further rounds begin at the end of round 1, which is step "
            f"{config.training.steps} (training.steps)"
        )
    here = RoundsProgress.from_folder(folder)
    if here is not None:
        _require_descent(here, source, folder)
        return
    refuse_differences(source, config, source.json("state.json")["digests"])
    clean_interrupted(folder.checkpoints)
    rooms = ["tokenizer", "data", "routing"] if config.model.rre_layers else ["tokenizer", "data"]
    for name in rooms:
        if not (theirs.root / name).is_dir():
            raise TrainingError(f"{source.folder} is not in a run folder: {theirs.root / name} is missing")
    for name in rooms:
        if not (folder.root / name).exists():
            link_folder(theirs.root / name, folder.root / name)
    if theirs.metrics.exists():
        shutil.copy(theirs.metrics, folder.metrics)
    link_folder(source.folder, folder.checkpoints / source.folder.name)
    log(f"rounds: took round 1 from {source.folder}")


def _require_descent(here: RoundsProgress, source: CheckpointReader, folder: RunFolder) -> None:
    path = sample_file(folder.rounds, 2)
    began_at = here.reader.digest if here.round == 1 else RoundSample.load(path).checkpoint
    if began_at != source.digest:
        raise TrainingError(
            f"{folder.root} holds a training that did not start from {source.folder}; choose another "
            f"--training.run_name, or remove {folder.checkpoints} and {folder.rounds}"
        )
