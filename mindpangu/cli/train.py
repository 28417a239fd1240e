"""Train the model of a run folder that has its tokenizer, data and routing table.

Does nothing if this training has already finished. Ctrl-C saves a checkpoint first.
"""

import argparse
import os
from pathlib import Path

from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder


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
    from mindpangu.train.report import write_report

    training.set_device(config)
    processes = start_processes(config)
    with processes.watched(folder.watch, config.parallelism.timeout):
        processes.join_groups(config)
        processes.report_status(doing="opening the run")
        opened = training.open_run(config, processes)
        finished = training.train(opened, options.resume, options.load)
    if not is_first:
        return 0
    write_report(folder)
    if finished < config.training.steps:
        folder.stopped.touch()
        print(f"train: stopped after step {finished}; run the same command with --resume to continue")
        return (
            130 if processes.mesh.size == 1 else 0
        )  # msrun would report 130 as an error; run_910.sh looks for the file
    print(f"train: done → {folder.root} (loss.png, report.md, metrics.jsonl, checkpoint/)")
    return 0


def _is_finished(config: Config, options: argparse.Namespace) -> bool:
    """True if the training is done. MindSpore is not loaded, so that a second start is quick."""
    from mindpangu.checkpoint import CheckpointReader, input_digests, is_finished, latest_iteration
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
        loaded = CheckpointReader(folder.checkpoints).json("state.json")["loaded"]
    return is_finished(folder.checkpoints, config, digests, loaded)


def _complete_outputs(folder: RunFolder, config: Config) -> None:
    """Writes the outputs that are missing if the program was killed after its last checkpoint."""
    from mindpangu.checkpoint import finish_publishing
    from mindpangu.train.report import write_report

    finish_publishing(folder.checkpoints, folder.latest, config.checkpoint.keep_last)
    if not folder.report.exists() or not folder.loss_plot.exists():
        write_report(folder)
