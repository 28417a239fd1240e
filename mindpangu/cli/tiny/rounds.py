"""Train in several rounds, each further one on batches that the model finds hard.

Round 1 is the ordinary training of training.steps batches, or a finished one: of the run folder, or of another one with
--checkpoint. For each further round the loss of every batch is computed with the model at the end of the round before,
and a share of the batches is drawn with p = softmax(loss), without replacement, from each part of the data. The
training goes on with them: weights, optimizer state and step numbers. For example

  mindpangu tiny rounds --checkpoint output/cpu_smoke --rounds 2 --rate 0.5 --parts 8

Losses and samples are kept in the run folder's rounds/. Ctrl-C saves what is done; --resume goes on.
"""

import argparse
from pathlib import Path

from mindpangu.config import Config, require_one_process
from mindpangu.config.run_folder import RunFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        type=Path,
        help="a finished first round: a checkpoint or a run folder. Its configuration is taken unless --config is "
        "given, and the rounds go to a run folder of their own, <run name>_rounds unless --training.run_name is given",
    )
    parser.add_argument("--rounds", metavar="N", type=int, default=2, help="the first included; default: %(default)s")
    parser.add_argument(
        "--rate", type=float, default=0.5, help="share of the batches in a further round; default: %(default)s"
    )
    parser.add_argument(
        "--parts",
        metavar="N",
        type=int,
        default=8,
        help="consecutive parts of the data, from each of which this share is drawn; default: %(default)s",
    )
    parser.add_argument(
        "--losses",
        default="frozen",
        help="frozen: computed with the model at the end of the round before; recorded: what each batch had when it "
        "was last trained on, free of cost; default: %(default)s",
    )
    parser.add_argument(
        "--schedule",
        default="restart",
        help="restart: every round goes through lr_scheduler anew, squeezed into its steps; continue: lr_scheduler "
        "goes on over all rounds, so set lr_scheduler.decay_steps to their steps; default: %(default)s",
    )
    parser.add_argument("--resume", action="store_true", help="go on in the middle of a round, bit for bit")


def settings(options: argparse.Namespace) -> dict[str, str]:
    if options.checkpoint is None:
        return {}
    from mindpangu.checkpoint import CheckpointReader

    return {"training.run_name": f"{CheckpointReader(options.checkpoint).config().training.run_name}_rounds"}


def run(options: argparse.Namespace, config: Config) -> int:
    from mindpangu.checkpoint import CheckpointReader
    from mindpangu.tiny.rounds.adopt import adopt
    from mindpangu.tiny.rounds.progress import RoundSettings, is_done

    folder = RunFolder.from_config(config)
    asked = RoundSettings(options.rounds, options.rate, options.parts, options.losses, options.schedule)
    require_one_process(config, "rounds are trained")
    asked.require_batches(config.training.steps)
    if options.checkpoint is not None:
        adopt(CheckpointReader(options.checkpoint), config)
    if is_done(config, asked):
        print(f"rounds: up to date, round {asked.rounds} is done ({folder.checkpoints})")
        return 0
    from mindpangu.tiny.rounds.training import train_rounds
    from mindpangu.train.report import write_report

    finished = train_rounds(config, asked, options.resume)
    write_report(folder)
    if not finished:
        print("rounds: stopped; the same command with --resume goes on")
        return 130
    print(f"rounds: round {asked.rounds} is done → {folder.root} (loss.png, report.md, metrics.jsonl, checkpoint/)")
    return 0
