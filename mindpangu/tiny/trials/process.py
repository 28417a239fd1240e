"""The process of one trial: python -m mindpangu.tiny.trials.process RUN_FOLDER …, started by `pool.py`.

It ends when its standard input ends, so it never outlives the process that started it. A training first
saves a checkpoint, from which the next process resumes.
"""

import argparse
import json
import math
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import numpy as np

from ascend_ops.native import OperatorError
from mindpangu.checkpoint import CheckpointReader, latest_iteration, list_iterations
from mindpangu.checkpoint.directory import remove
from mindpangu.config import load_saved_config
from mindpangu.data.prepare import prepare_routing
from mindpangu.errors import MindPanguError, TrainingError
from mindpangu.interpreter import divert_compiler_reports, prepare_interpreter
from mindpangu.locks import locked
from mindpangu.signals import StopOnSignal, StoppedBySignal, describe_stop, exit_at_once, exit_code
from mindpangu.stage import ResultFile
from mindpangu.tiny.trials.measures import decoding_speed, final_loss, heldout_bits_per_byte, training_speed
from mindpangu.tiny.trials.trial import RESULT
from mindpangu.train.metrics import read_metrics
from mindpangu.train.run import open_run, set_device, train


def run_trial(root: Path, result: ResultFile, decode: bool, keep_checkpoint: bool) -> None:
    """Trains a run folder, or resumes its training, and writes the measures to `result`.

    The file has `bits_per_byte` (mean over domains) and `heldout` (by domain), `train_tokens_per_s`,
    `decode_tokens_per_s` (null without `decode`), and `final_loss`.

    Raises:
        TrainingStopped: a signal stopped the training.
    """
    with locked(root / "trial", wait=math.inf):  # a process of a killed search may still be running
        if result.is_current():
            return
        config = load_saved_config(root / "config.yaml")
        set_device(config)
        prepare_routing(config)
        run = open_run(config)
        # the checkpoints of a finished trial are removed, so a trial that must be measured again starts over
        train(run, resume=latest_iteration(run.folder.checkpoints) is not None)
        heldout = heldout_bits_per_byte(run.model, run.shards)
        records = read_metrics(run.folder.metrics)
        if not records:
            raise TrainingError(f"{run.folder.metrics} has no records; remove {root} to train it again")
        result.write(
            {
                "bits_per_byte": float(np.mean([domain["bits_per_byte"] for domain in heldout])),
                "heldout": heldout,
                "final_loss": final_loss(records),
                "train_tokens_per_s": training_speed(records),
                "decode_tokens_per_s": decoding_speed(CheckpointReader(run.folder.root)) if decode else None,
            }
        )
        if not keep_checkpoint:
            for checkpoint in list_iterations(run.folder.checkpoints):
                remove(checkpoint)
            shutil.rmtree(run.folder.checkpoints)
            run.folder.latest.unlink(missing_ok=True)


def _end_with_parent() -> None:
    """Stops this process as soon as its standard input is closed."""

    def watch() -> None:
        # the parent never writes, so this returns only when the pipe is closed
        os.read(sys.stdin.fileno(), 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--inputs", required=True, help="JSON: the settings that determine the measures")
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--keep-checkpoint", action="store_true")
    options = parser.parse_args()
    _end_with_parent()
    result = ResultFile(options.folder / RESULT, json.loads(options.inputs))
    with divert_compiler_reports():
        try:
            with StopOnSignal(patience=0):
                run_trial(options.folder, result, options.decode, options.keep_checkpoint)
            return 0
        except (MindPanguError, OperatorError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except StoppedBySignal as stopped:
            print(f"error: {describe_stop(stopped.signum)}", file=sys.stderr)
            code = exit_code(stopped.signum)
    exit_at_once(code)


if __name__ == "__main__":
    prepare_interpreter()
    sys.exit(main())
