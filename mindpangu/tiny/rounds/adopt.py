"""Adopts a finished first round from another run folder. Does not load MindSpore."""

from collections.abc import Callable

from mindpangu.checkpoint import CheckpointReader, SavedState, clean_interrupted, refuse_differences
from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder
from mindpangu.errors import TrainingError
from mindpangu.files import link_folder
from mindpangu.locks import locked
from mindpangu.tiny.rounds.files import RoundSample, sample_file
from mindpangu.tiny.rounds.progress import RoundsProgress
from mindpangu.train.metrics import copy_metrics
from mindpangu.train.start import refuse_incomplete_checkpoints


def adopt(source: CheckpointReader, config: Config, log: Callable[[str], None] = print) -> None:
    """Links a finished first round into the run folder: its checkpoint, tokenizer, data, tables and metrics.

    Files that never change become hard links if the file system supports them. Does nothing if the run folder already
    started from this checkpoint.

    Args:
        source: the checkpoint at the end of the first round.
        config: configuration of the run that adopts it.

    Raises:
        InUseError: another process is training rounds in the run folder.
        CheckpointError: the round was trained with other settings.
        TrainingError: the checkpoint is not the end of a first round, its run folder is incomplete, or the run
            folder holds another training.
    """
    folder = RunFolder.from_config(config)
    source_run = RunFolder(source.folder.parent.parent)
    if folder.root.resolve() == source_run.root.resolve():
        return
    with locked(folder.rounds, in_use=f"{folder.root} is being trained in rounds"):
        _adopt(source, source_run, config, folder, log)


def _adopt(
    source: CheckpointReader, source_run: RunFolder, config: Config, folder: RunFolder, log: Callable[[str], None]
) -> None:
    progress = RoundsProgress.from_checkpoint(source)
    if progress.round != 1:
        raise TrainingError(
            f"{source.folder} is already of round {progress.round}; give the checkpoint of round 1 that its rounds "
            f"started from, and --training.run_name {source_run.root.name} to continue there"
        )
    if source.step != config.training.steps:
        raise TrainingError(
            f"{source.folder} is of step {source.step}; further rounds begin at the end of round 1, which is step "
            f"{config.training.steps} (training.steps)"
        )
    existing = RoundsProgress.from_folder(folder)
    if existing is not None:
        _require_started_from(existing, source, folder)
        return
    refuse_differences(source, config, SavedState.read(source).digests)
    refuse_incomplete_checkpoints(folder)
    clean_interrupted(folder.checkpoints)
    names = ["tokenizer", "data", "routing"] if config.model.rre_layers else ["tokenizer", "data"]
    for name in names:
        if not (source_run.root / name).is_dir():
            raise TrainingError(f"{source.folder} is not in a run folder: {source_run.root / name} is missing")
    for name in names:
        if not (folder.root / name).exists():
            link_folder(source_run.root / name, folder.root / name)
    copy_metrics(source_run.metrics, folder.metrics, source.step, log)
    link_folder(source.folder, folder.checkpoints / source.folder.name)
    log(f"rounds: took round 1 from {source.folder}")


def _require_started_from(progress: RoundsProgress, source: CheckpointReader, folder: RunFolder) -> None:
    """Raises TrainingError if the run folder's second round did not, or will not, start from `source`."""
    if progress.round == 1:
        started_from = progress.reader.digest
    else:
        started_from = RoundSample.load(sample_file(folder.rounds, 2)).checkpoint
    if started_from != source.digest:
        raise TrainingError(
            f"{folder.root} holds a training that did not start from {source.folder}; choose another "
            f"--training.run_name, or remove {folder.checkpoints} and {folder.rounds}"
        )
