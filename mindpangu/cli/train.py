"""Train the model of a run folder whose tokenizer, data and routing table are there.

Skipped when exactly this training is already finished. Ctrl-C saves a checkpoint first.
"""

import argparse
from pathlib import Path

from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="go on from the run's newest checkpoint, bit for bit")
    start.add_argument("--load", metavar="DIR", type=Path, help="start a new training from a checkpoint's weights")


def run(options: argparse.Namespace, config: Config) -> int:
    folder = RunFolder.of(config)
    if not options.load and _is_finished(config):
        print(f"train: up to date, step {config.training.steps} is done ({folder.checkpoints})")
        return 0
    from mindpangu.train import run as training
    from mindpangu.train.report import write_report

    training.set_device(config)
    opened = training.open_run(config)
    finished = training.train(opened, options.resume, options.load)
    write_report(folder)
    if finished < config.training.steps:
        print(f"train: stopped after step {finished}; the same command with --resume goes on")
        return 130
    print(f"train: done → {folder.root} (loss.png, report.md, metrics.jsonl, checkpoint/)")
    return 0


def _is_finished(config: Config) -> bool:
    """Without loading MindSpore, so that a second start is quick."""
    from mindpangu.checkpoint import input_digests, is_finished, latest_iteration
    from mindpangu.data import TokenShards
    from mindpangu.domains import build_domains
    from mindpangu.routing import RoutingTable
    from mindpangu.tokenizer import Tokenizer

    folder = RunFolder.of(config)
    if latest_iteration(folder.checkpoints) is None:
        return False
    tokenizers = {path.stem: Tokenizer.load(path) for path in sorted(folder.tokenizer.glob("*.model"))}
    table = None
    if config.model.rre_layers:
        table = RoutingTable.load(folder.routing, [domain.name for domain in build_domains(config)])
    digests = input_digests(TokenShards.open(folder.data).digest, table, tokenizers)
    return is_finished(folder.checkpoints, config, digests)
