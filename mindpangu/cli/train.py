"""Train the model of a run folder that has its tokenizer, data and routing table.

Does nothing if this training has already finished. After Ctrl-C, SIGTERM, or SIGHUP it finishes the step and saves a
checkpoint; a second signal stops it at once.
"""

import argparse
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder
from mindpangu.files import write_text_atomically
from mindpangu.signals import describe_stop, exit_code

if TYPE_CHECKING:
    from mindpangu.parallel.processes import Processes
    from mindpangu.train.loop import TrainingStopped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resume", action="store_true", help="Continue from the run's newest checkpoint, bit for bit.")
    parser.add_argument(
        "--load",
        metavar="DIR",
        type=Path,
        help="Start a new training from the weights of this checkpoint, or of the newest one of this run folder. With "
        "--resume, only if there is nothing to resume.",
    )


def run(options: argparse.Namespace, config: Config) -> int:
    folder = RunFolder.from_config(config)
    is_first = os.environ.get("RANK_ID", "0") == "0"
    if _is_finished(config, options):
        if is_first:
            _complete_outputs(folder, config)
            print(f"train: up to date, step {config.training.steps} is done ({folder.checkpoints})")
        return 0
    from mindpangu.parallel.processes import start_processes
    from mindpangu.train import run as training
    from mindpangu.train.loop import TrainingStopped
    from mindpangu.train.report import write_report

    training.set_device(config)
    processes = start_processes(config)
    with processes.watched(folder.watch, config.parallelism.timeout):
        processes.join_groups(config)
        processes.report_status(doing="opening the run")
        opened = training.open_run(config, processes)
        stopped: TrainingStopped | None = None
        try:
            training.train(opened, options.resume, options.load)
        except TrainingStopped as stop:  # must not leave the block, which would report it as an error of this rank
            stopped = stop
    code = 0 if stopped is None else _report_stop(stopped, folder, processes)
    if processes.is_first:
        write_report(folder)
        if stopped is None:
            print(f"train: done → {folder.root} (loss.png, report.md, metrics.jsonl, checkpoint/)")
    return code


def _report_stop(stopped: "TrainingStopped", folder: RunFolder, processes: "Processes") -> int:
    """Tells the user that a signal stopped the training, and returns the exit code.

    With several ranks each exits with 0, because msrun would take any other code for a failure and kill the others.
    msrun does not pass exit codes on either, so run_910.sh reads this one from a file.
    """
    if processes.is_first:
        write_text_atomically(folder.stopped, f"{exit_code(stopped.signum)}\n")
        with contextlib.suppress(OSError):  # the terminal may have been closed
            print(
                f"train: {describe_stop(stopped.signum)} after step {stopped.step}; "
                "run the same command with --resume to continue",
                flush=True,
            )
    return exit_code(stopped.signum) if processes.mesh.size == 1 else 0


def _is_finished(config: Config, options: argparse.Namespace) -> bool:
    """True if the training is done. MindSpore is not loaded, so that a second start is quick."""
    from mindpangu.checkpoint import CheckpointReader, SavedState, input_digests, is_finished, latest_iteration
    from mindpangu.data import TokenShards
    from mindpangu.language_model import ModelParts

    folder = RunFolder.from_config(config)
    if latest_iteration(folder.checkpoints) is None:
        return False
    parts = ModelParts.from_run(config)
    digests = input_digests(TokenShards.open(folder.data).digest, parts.table, parts.tokenizers)
    loaded = None
    if options.load:
        loaded = CheckpointReader(options.load).digest
    elif options.resume:
        # --resume continues whatever the training started from
        loaded = SavedState.read(CheckpointReader(folder.checkpoints)).loaded
    return is_finished(folder.checkpoints, config, digests, loaded)


def _complete_outputs(folder: RunFolder, config: Config) -> None:
    """Writes the outputs that are missing if the program was killed after its last checkpoint."""
    from mindpangu.checkpoint import finish_publishing
    from mindpangu.train.report import write_report

    finish_publishing(folder.checkpoints, folder.latest, config.checkpoint.keep_last)
    if not folder.report.exists() or not folder.loss_plot.exists():
        write_report(folder)
