"""Trains a run: opens the outputs of the earlier stages, starts or resumes the training, and takes its steps."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mindspore as ms

from ascend_ops import backends
from mindpangu.checkpoint import (
    CheckpointReader,
    clean_interrupted,
    differences,
    input_digests,
    is_complete,
    iteration_folder,
    latest_iteration,
)
from mindpangu.config import Config, is_saved_config, to_yaml
from mindpangu.config.run_folder import RunFolder
from mindpangu.data import Loader, ReplayLoader, TokenShards
from mindpangu.display import printable_line
from mindpangu.errors import CheckpointError, ConfigError, MindPanguError, TrainingError
from mindpangu.files import write_text_atomically
from mindpangu.interpreter import unreadable_import_path
from mindpangu.language_model import LanguageModel, ModelParts, SavedExperts
from mindpangu.locks import locked
from mindpangu.parallel.processes import Processes
from mindpangu.pruned import MAX_TRIES, forget_opened_checkpoints
from mindpangu.train.callbacks import Callback, Progress
from mindpangu.train.checkpointing import Checkpointer, load_weights, resume_training
from mindpangu.train.loop import run_steps
from mindpangu.train.metrics import MetricsFile, set_aside
from mindpangu.train.schedule import learning_rate
from mindpangu.train.start import refuse_lost_checkpoints
from mindpangu.train.step import TrainStep
from mindpangu.train.stream import StepStream


@dataclass
class Run:
    """A run that is ready for training or evaluation."""

    config: Config
    folder: RunFolder
    shards: TokenShards
    model: LanguageModel


@dataclass(frozen=True)
class TrainingSchedule:
    """The batches and learning rates of a training up to training.steps.

    Attributes:
        loader: yields the batches.
        learning_rate: step → its learning rate; the first step is 1.
    """

    loader: Loader | ReplayLoader
    learning_rate: Callable[[int], float]

    @staticmethod
    def from_run(run: Run) -> "TrainingSchedule":
        """Returns the usual schedule: the training stream and the section lr_scheduler."""
        return TrainingSchedule(
            Loader(run.shards, run.model.domains, run.config), partial(learning_rate, run.config.lr_scheduler)
        )


def open_run(config: Config, processes: Processes | None = None) -> Run:
    """Opens a run folder's shards, tokenizers, and routing table, and builds the model; expert weights are still zero.

    Args:
        processes: the ranks that share the model; None if this rank alone has it.

    Raises:
        MindPanguError: the output of a stage is missing, or does not match that of another stage.
    """
    require_supported(config)
    folder = RunFolder.from_config(config)
    shards = TokenShards.open(folder.data, verify=True)
    model = LanguageModel(ModelParts.from_run(config), processes)
    model.require_data(shards)
    return Run(config, folder, shards, model)


def require_supported(config: Config) -> None:
    """Raises ConfigError for a precision that this version cannot compute in."""
    if config.context.precision == "bf16":
        raise ConfigError("context.precision is bf16; this version computes in fp32 or fp16")


def set_device(config: Config) -> None:
    """Sets PyNative mode and the configured device.

    Raises:
        ConfigError: MindSpore does not find the device, or cannot compile in this environment.
    """
    if folder := unreadable_import_path():
        raise ConfigError(
            f"MindSpore cannot compile, because sys.path has {printable_line(folder)}, whose name is not UTF-8: "
            "rename this folder, or remove it from PYTHONPATH"
        )
    ms.set_context(mode=ms.PYNATIVE_MODE)
    target = config.context.device_target
    if ms.get_context("device_target") == target:  # it can be set only once
        return
    try:
        ms.set_device(target)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"context.device_target is {target}, which MindSpore does not find here ({reason}); use "
            "--context.device_target CPU --context.precision fp32"
        ) from None


def train(
    run: Run,
    resume: bool = False,
    load: Path | None = None,
    log: Callable[[str], None] = print,
    schedule: TrainingSchedule | None = None,
    callbacks: Sequence[Callback] = (),
) -> int:
    """Trains a run to its last step. Returns the number of this step.

    Args:
        resume: continue from the newest checkpoint of the run folder, bit for bit. A run that failed before its first
            checkpoint starts at step 1.
        load: start from the weights of this checkpoint, unless there is a checkpoint to resume from.
        log: receives the messages.
        schedule: batches and learning rates; None takes those of the configuration.
        callbacks: hooks to call after those that log each step, on every rank. This is how a caller evaluates while
            the model trains: training itself knows nothing of evaluation.

    Raises:
        InUseError: another process is training in the run folder.
        TrainingStopped: a signal stopped the training; its last finished step is saved.
        TrainingError: the run folder already holds a training and `resume` is not given, or it has lost checkpoints
            (`refuse_lost_checkpoints`).
        CheckpointError: a checkpoint cannot be used or cannot be written.
    """
    folder = run.folder
    processes = run.model.processes
    schedule = schedule or TrainingSchedule.from_run(run)
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    if not processes.is_first:
        processes.barrier()
        return _train(run, resume, load, lambda text: None, schedule, callbacks)
    with locked(folder.root / "train", in_use=f"{folder.root} is being trained"):
        clean_interrupted(folder.checkpoints)
        refuse_lost_checkpoints(folder, resume, run.config.checkpoint.save_steps)
        processes.barrier()  # the other ranks look for checkpoints only now
        return _train(run, resume, load, log, schedule, callbacks)


def _train(
    run: Run,
    resume: bool,
    load: Path | None,
    log: Callable[[str], None],
    schedule: TrainingSchedule,
    callbacks: Sequence[Callback],
) -> int:
    """Trains with the run folder locked, so that no other process trains in it."""
    config = run.config
    folder = run.folder
    model = run.model
    processes = model.processes
    newest = latest_iteration(folder.checkpoints)
    digests = input_digests(run.shards.digest, model.table, model.tokenizers)
    if newest is not None and not resume:
        raise TrainingError(_describe_existing(folder, CheckpointReader(newest), config, digests))
    train_step = TrainStep(model)
    finished = 0
    loaded = None
    previous = None
    if newest is not None:
        reader = CheckpointReader(newest)
        processes.report_status(reader.step, "reading the checkpoint")
        finished, state, loaded = resume_training(reader, train_step, digests)
        schedule.loader.load_state(state)
        previous = SavedExperts(reader, model.store.step_counts.copy())
        log(f"resumed from {newest} after step {finished}")
    else:
        if resume:
            log(f"there is no checkpoint in {folder.checkpoints} to resume from: starting at step 1")
        model.store.initialize()
        if load is not None:
            reader = _load_weights(load, model)
            loaded = reader.digest
            log(f"started from the weights of {reader.folder}")
    log(f"operators: {backends.describe()}")
    if processes.mesh.size > 1:
        log(f"processes: {processes.mesh.describe()}")
    if config.model.rre_layers:
        of_rank = " (this rank)" if processes.mesh.size > 1 else ""
        log(f"experts{of_rank}: {model.store.describe()}, mode {config.experts.mode}")
    if processes.is_first:
        _save_config(folder, config, log)
    if finished >= config.training.steps:
        log(f"nothing to train: step {finished} of {config.training.steps} is done")
        return finished

    progress = Progress(config.monitor.log_steps, folder.log(processes.rank) / "info.log", quiet=not processes.is_first)
    logging: list[Callback] = [progress]
    if processes.is_first:
        logging.insert(0, MetricsFile(folder.metrics, train_step.guard.state()["loss"], log))
    checkpointer = Checkpointer(folder, train_step, digests, loaded, previous, progress.on_message)
    stream = StepStream(schedule.loader, model.planner)
    processes.report_status(doing="preparing the first step")
    try:
        train_step.prepare()
        forget_opened_checkpoints()  # everything has been read: no later error is due to pruning
        return run_steps(train_step, stream, finished + 1, [*logging, *callbacks], checkpointer, schedule.learning_rate)
    finally:
        stream.close()


def _save_config(folder: RunFolder, config: Config, log: Callable[[str], None]) -> None:
    """Writes the resolved configuration to the run folder. A file of this name that the user put there is set aside."""
    if os.path.lexists(folder.config) and not is_saved_config(folder.config):
        kept = set_aside(folder.config)
        log(f"{folder.config} was not written by a training; kept as {kept.name} and replaced with the resolved one")
    write_text_atomically(folder.config, to_yaml(config))


def _load_weights(load: Path, model: LanguageModel) -> CheckpointReader:
    """Loads the weights of the same checkpoint on all ranks, even if its run is still saving and pruning checkpoints.

    Raises:
        CheckpointError: there is no checkpoint, it is of another model, or it was removed during every attempt.
    """
    for _ in range(MAX_TRIES):
        newest = CheckpointReader(load)
        step = model.processes.broadcast(newest.step)
        folder = newest.folder if newest.step == step else iteration_folder(newest.folder.parent, step)
        removed = False
        try:
            reader = CheckpointReader(folder)
            load_weights(reader, model)
        except (MindPanguError, OSError):
            removed = not is_complete(folder)
            if not removed:
                raise
        if not model.processes.any_rank(removed):
            return reader
    forget_opened_checkpoints()  # otherwise `retry_if_pruned` would try again
    raise CheckpointError(f"{load}: checkpoints are removed faster than they can be loaded; load a copy of one")


def _describe_existing(folder: RunFolder, reader: CheckpointReader, config: Config, digests: Mapping[str, str]) -> str:
    changed = differences(reader, config, digests)
    if changed:
        remedy = f"of a different kind ({'; '.join(changed)}). Choose another --training.run_name"
    else:
        remedy = "of this kind. Continue with --resume, or choose another --training.run_name"
    return f"{folder.root} already holds a training up to step {reader.step}, {remedy}, or remove {folder.checkpoints}"
