"""Train in several rounds, each further one on batches that the model finds hard.

Round 1 is an ordinary training of training.steps batches. A finished one is used if the run folder has it, or if
--checkpoint names it. Before each further round, the loss of every batch is computed with the current model, and a
share of the batches is drawn from each part of the data with p = softmax(loss), without replacement. The training
continues on these batches with the same weights, optimizer state and step numbers. For example:

  mindpangu tiny rounds --checkpoint output/cpu_smoke --rounds 2 --rate 0.5 --parts 8

Losses and samples are saved in rounds/ of the run folder. Ctrl-C, SIGTERM, and SIGHUP save a checkpoint; --resume
continues from it.
"""

import argparse
from pathlib import Path

from mindpangu.config import Config, require_one_process
from mindpangu.config.run_folder import RunFolder
from mindpangu.signals import describe_stop, exit_code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        type=Path,
        help="Start from this checkpoint of a finished first round, or the newest one of this run folder. Its "
        "configuration is used unless --config is given; the rounds get their own run folder, <run name>_rounds unless "
        "--training.run_name is given.",
    )
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=int,
        default=2,
        help="Number of rounds, including the first (default: %(default)s).",
    )
    parser.add_argument(
        "--rate",
        metavar="X",
        type=float,
        default=0.5,
        help="Share of the batches that each further round trains on (default: %(default)s).",
    )
    parser.add_argument(
        "--parts",
        metavar="N",
        type=int,
        default=8,
        help="Divide the data into this many consecutive parts and draw the share from each (default: %(default)s).",
    )
    parser.add_argument(
        "--losses",
        default="frozen",
        metavar="METHOD",
        help="frozen: losses are computed with the model at the end of the previous round. recorded: a batch has the "
        "loss from when it was last trained on, at no extra cost (default: %(default)s).",
    )
    parser.add_argument(
        "--schedule",
        default="restart",
        metavar="METHOD",
        help="restart: each round runs the complete lr_scheduler, compressed to its steps. continue: lr_scheduler runs "
        "once over all rounds, so set lr_scheduler.decay_steps to their total (default: %(default)s).",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Continue from the newest checkpoint, also in the middle of a round, bit for bit.",
    )


def settings(options: argparse.Namespace) -> dict[str, str]:
    if options.checkpoint is None:
        return {}
    from mindpangu.checkpoint import CheckpointReader

    reader = CheckpointReader(options.checkpoint)
    return {"training.run_name": f"{reader.config(reader.local_settings()).training.run_name}_rounds"}


def run(options: argparse.Namespace, config: Config) -> int:
    from mindpangu.checkpoint import CheckpointReader
    from mindpangu.tiny.rounds.adopt import adopt
    from mindpangu.tiny.rounds.progress import RoundSettings, is_done

    folder = RunFolder.from_config(config)
    round_settings = RoundSettings(options.rounds, options.rate, options.parts, options.losses, options.schedule)
    require_one_process(config, "rounds are trained")
    round_settings.require_batches(config.training.steps)
    if options.checkpoint is not None:
        adopt(CheckpointReader(options.checkpoint), config)
    if is_done(config, round_settings):
        print(f"rounds: up to date, round {round_settings.rounds} is done ({folder.checkpoints})")
        return 0
    from mindpangu.tiny.rounds.training import train_rounds
    from mindpangu.train.loop import TrainingStopped
    from mindpangu.train.report import write_report

    try:
        train_rounds(config, round_settings, options.resume)
    except TrainingStopped as stopped:
        write_report(folder)
        print(f"rounds: {describe_stop(stopped.signum)}; run the same command with --resume to continue")
        return exit_code(stopped.signum)
    write_report(folder)
    files = "loss.png, report.md, metrics.jsonl, checkpoint/"
    print(f"rounds: round {round_settings.rounds} is done → {folder.root} ({files})")
    return 0
