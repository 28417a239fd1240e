"""Fine-tune a checkpoint on instruction records: dialogue, question answering, translation, code.

  mindpangu finetune --checkpoint output/cpu_smoke --data dialogues.jsonl --train experts:zh

Creates a run folder with the checkpoint's configuration, tokenizer and routing tables, prepares the records, trains
only on their answers, and prints the loss of held-out answers before and after. docs/finetune.md describes the records
and the settings that the verb chooses; any key can be overridden. Does nothing if this fine-tuning has already
finished.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindpangu.cli import train
from mindpangu.cli.option_types import glob_pattern
from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder
from mindpangu.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from mindpangu.checkpoint import CheckpointReader


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        type=Path,
        required=True,
        help="Fine-tune this checkpoint, or the newest one of this run folder.",
    )
    parser.add_argument(
        "--data",
        metavar="FILE",
        type=glob_pattern,
        nargs="+",
        required=True,
        help="Train on the records in these jsonl files (glob patterns).",
    )
    parser.add_argument(
        "--train",
        metavar="WHAT",
        default="all",
        help="Train all parameters, or only the experts of some domains: experts:zh,code (default: %(default)s).",
    )
    parser.add_argument(
        "--resume", action="store_true", help="Continue from the newest checkpoint of this fine-tuning."
    )
    parser.add_argument(
        "--answers",
        metavar="N",
        type=int,
        default=2,
        help="Answer this many held-out records per domain, before and after (default: %(default)s).",
    )


def settings(options: argparse.Namespace) -> dict[str, str]:
    from mindpangu.lifecycle.finetune import finetune_settings

    return finetune_settings(options.checkpoint, options.data, options.train)


def run(options: argparse.Namespace, config: Config) -> int:
    from mindpangu.checkpoint import CheckpointReader, SavedState, latest_iteration
    from mindpangu.data import TokenShards
    from mindpangu.data.prepare import prepare_routing, prepare_shards, prepare_tokenizer
    from mindpangu.lifecycle.finetune import SavedComparison, format_comparison
    from mindpangu.stage import ResultFile

    if options.answers < 0:
        raise ConfigError(f"--answers is {options.answers}; allowed: >= 0")
    folder = RunFolder.from_config(config)
    source = CheckpointReader(options.checkpoint)
    exists = latest_iteration(folder.checkpoints) is not None
    if exists and SavedState.read(CheckpointReader(folder.checkpoints)).loaded != source.digest:
        raise TrainingError(
            f"{folder.root} holds a training that did not start from {source.folder}; choose another "
            f"--training.run_name, or remove {folder.checkpoints}"
        )
    print(
        f"finetune: {source.folder} → {folder.root}, training.train {config.training.train}, "
        f"{config.training.steps} steps of {config.training.global_batch_size} samples, "
        f"peak learning rate {config.lr_scheduler.learning_rate:g}"
    )
    for prepare in (prepare_tokenizer, prepare_shards, prepare_routing):
        prepare(config)
    inputs = {
        "checkpoint": source.digest,
        "data": TokenShards.open(folder.data).digest,
        "heldout_samples": config.monitor.heldout_samples,
        "answers": options.answers,
    }
    result = ResultFile(folder.finetuning, inputs)
    if not result.is_current():
        result.write({"before": _evaluate(source, config, options.answers)})
    code = train.run(argparse.Namespace(resume=options.resume, load=options.checkpoint), config)
    if code:
        return code
    tuned = CheckpointReader(folder.root)
    found = asdict(result.read(SavedComparison))
    if found["tuned"] != tuned.digest:
        after = _evaluate(tuned, config, options.answers)
        found = {"tuned": tuned.digest, "before": found["before"], "after": after}
        result.write(found)
    print(format_comparison(found["before"], found["after"]))
    print(f"finetune: step {tuned.step} → {folder.finetuning}")
    return 0


def _evaluate(reader: "CheckpointReader", config: Config, num_answers: int) -> dict[str, Any]:
    from functools import partial

    from tqdm import tqdm

    from mindpangu.evaluation.answers import heldout_answers
    from mindpangu.train.run import set_device

    set_device(config)
    progress = partial(tqdm, desc="evaluate", unit="domain", disable=None)
    return heldout_answers(reader, config, num_answers, progress)
