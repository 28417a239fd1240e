"""Decides whether a training may start in a run folder: not if it would silently repeat and overwrite steps."""

import re

from mindpangu.checkpoint import incomplete_iterations, latest_iteration
from mindpangu.config.run_folder import RunFolder
from mindpangu.errors import TrainingError
from mindpangu.train.metrics import read_metrics
from mindpangu.untrusted import read_bytes

_POINTER = re.compile(rb"\s*(\d{1,18})\s*")


def refuse_lost_checkpoints(folder: RunFolder, resume: bool, save_steps: int) -> None:
    """Refuses to train over a damaged checkpoint, or to resume a run folder that has lost its checkpoints.

    A run that failed before its first checkpoint may be resumed, and starts at step 1. Without `resume`, a run folder
    without checkpoints starts over.

    Raises:
        TrainingError: training is refused; the message says what to do.
    """
    refuse_incomplete_checkpoints(folder)
    if latest_iteration(folder.checkpoints) is not None:
        return
    if not resume:
        folder.latest.unlink(missing_ok=True)  # it belongs to an earlier training
        return
    evidence = _evidence_of_checkpoints(folder, save_steps)
    if evidence is not None:
        raise TrainingError(
            f"there is no checkpoint in {folder.checkpoints} to resume from, but {evidence}. Copy the checkpoints "
            f"back; or start over at step 1, without --resume ({folder.metrics.name} is then kept under another name)"
        )


def refuse_incomplete_checkpoints(folder: RunFolder) -> None:
    """Raises TrainingError if a checkpoint later than the newest complete one lacks its manifest."""
    damaged = incomplete_iterations(folder.checkpoints)
    if not damaged:
        return
    newest = latest_iteration(folder.checkpoints)
    names = ", ".join(path.name for path in damaged)
    them = "it" if len(damaged) == 1 else "them"
    begin = "start at step 1" if newest is None else f"continue from {newest.name}"
    raise TrainingError(
        f"{folder.checkpoints} has {names} without a manifest.json, so training would {begin} and overwrite {them}. "
        f"Copy {them} again; or, to {begin}, remove or rename {them}"
    )


def _evidence_of_checkpoints(folder: RunFolder, save_steps: int) -> str | None:
    """Describes the evidence that the run folder once had a checkpoint. Returns None if there is none."""
    try:
        pointer = _POINTER.fullmatch(read_bytes(folder.latest, 64))
    except (OSError, ValueError):
        pointer = None
    if pointer is not None:
        return f"{folder.latest.name} names the checkpoint of step {int(pointer[1])}"
    records = read_metrics(folder.metrics, lambda text: None)
    # the first checkpoint may still be written while training goes on, up to the step of the second one
    if records and records[-1]["step"] > 2 * save_steps:
        return f"{folder.metrics.name} goes up to step {records[-1]['step']}, with checkpoints every {save_steps} steps"
    return None
