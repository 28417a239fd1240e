"""The training loop: takes planned steps, one after the other, and calls the callbacks. No setup, no files."""

import contextlib
import itertools
import math
import resource
import signal
import time
from collections.abc import Callable, Sequence

from mindpangu.data import Batch
from mindpangu.errors import TrainingError
from mindpangu.parallel.processes import Processes
from mindpangu.signals import STOP_SIGNALS, StopOnSignal, StoppedBySignal
from mindpangu.train.callbacks import Callback, StepRecord
from mindpangu.train.checkpointing import Checkpointer
from mindpangu.train.step import StepResult, TrainStep
from mindpangu.train.stream import PlannedStep, StepStream


def run_steps(
    train_step: TrainStep,
    stream: StepStream,
    first_step: int,
    callbacks: Sequence[Callback],
    checkpointer: Checkpointer,
    learning_rate: Callable[[int], float],
) -> int:
    """Trains from `first_step` to training.steps.

    Args:
        checkpointer: saves a checkpoint every checkpoint.save_steps and at the end.
        learning_rate: step → its learning rate.

    Returns:
        The last step, whose checkpoint is saved.

    Raises:
        TrainingStopped: a signal asked to stop. The current step was finished first, and its checkpoint is saved.
        TrainingError: too many steps in a row were skipped; a checkpoint is saved first.
        CheckpointError: a checkpoint cannot be written.
    """
    config = train_step.config
    last_step = config.training.steps
    finished = first_step - 1
    skipped_in_a_row = 0
    stopping: signal.Signals | None = None
    with contextlib.ExitStack() as running:
        for callback in callbacks:
            callback.on_start(first_step, last_step)
            running.callback(callback.on_end)
        with StopOnSignal() as stop, checkpointer:
            for step in range(first_step, last_step + 1):
                started = time.perf_counter()
                train_step.processes.report_status(step, "waiting for its batches")
                planned = stream.next()
                rate = learning_rate(step)
                upcoming = stream.peek().plan.plans if step < last_step else None
                result = train_step.run(
                    planned.plan.batches, planned.plan.plans, rate, upcoming, planned.plan.num_targets
                )
                record = _record(train_step, step, rate, result, planned, time.perf_counter() - started)
                for callback in callbacks:
                    callback.on_step(record)
                if not result.loss_scale_lowered:
                    skipped_in_a_row = skipped_in_a_row + 1 if result.skipped else 0
                give_up = skipped_in_a_row >= config.training.max_skipped_steps
                if result.skipped:
                    _report_skipped(callbacks, train_step, step, result, planned)
                checkpointer.poll()
                # read once: a signal may arrive between two readings, and on one rank only
                stopping = _signal_on_any_rank(train_step.processes, stop.requested)
                if step % config.checkpoint.save_steps == 0 or step == last_step or stopping or give_up:
                    checkpointer.save(step, planned.loader_state)
                finished = step
                if give_up:
                    raise TrainingError(
                        f"{skipped_in_a_row} steps in a row were skipped, the last one because {result.skipped}; "
                        "their batches are named above. Lower lr_scheduler.learning_rate, or inspect this data"
                    )
                if stopping:
                    break
    if stopping and finished < last_step:
        raise TrainingStopped(stopping, finished)
    return finished


class TrainingStopped(StoppedBySignal):
    """A signal stopped the training after `step`. The checkpoint of this step is saved."""

    def __init__(self, signum: int, step: int):
        super().__init__(signum)
        self.step = step


def _signal_on_any_rank(processes: Processes, requested: signal.Signals | None) -> signal.Signals | None:
    """Returns a signal that asked any rank to stop, or None. All ranks get the same one."""
    received = processes.any_ranks([requested == signum for signum in STOP_SIGNALS])
    return next(itertools.compress(STOP_SIGNALS, received), None)


def _report_skipped(
    callbacks: Sequence[Callback], train_step: TrainStep, step: int, result: StepResult, planned: PlannedStep
) -> None:
    batch = name_batches(planned.plan.batches, [domain.name for domain in train_step.model.domains])
    for callback in callbacks:
        callback.on_message(f"step {step} was skipped ({result.skipped}); its batch: {batch}")


def name_batches(batches: Sequence[Batch], domain_names: Sequence[str]) -> str:
    """Lists the samples of a step by domain and index, which locate them in the token shards."""
    samples: dict[str, list[int]] = {}
    for batch in batches:
        for domain, index in batch.sample_ids_B2.tolist():
            samples.setdefault(domain_names[domain], []).append(index)
    return "; ".join(f"{name} samples {indices}" for name, indices in samples.items())


def _record(
    train_step: TrainStep, step: int, rate: float, result: StepResult, planned: PlannedStep, seconds: float
) -> StepRecord:
    plan = planned.plan
    tokens = train_step.processes.mesh.data * sum(batch.tokens_BS.size for batch in plan.batches)
    names = [domain.name for domain in train_step.model.domains]
    return StepRecord(
        step=step,
        loss=result.loss,
        lr=rate,
        global_norm=result.global_norm,
        overflow=not (math.isfinite(result.loss) and math.isfinite(result.global_norm)),
        loss_scale=result.loss_scale,
        per_step_time=seconds,
        tokens_per_s=tokens / seconds,
        imbalance=sum(route_plan.imbalance() for route_plan in plan.plans) / len(plan.plans),
        experts_activated=result.traffic.activated,
        bytes_to_device=result.traffic.bytes_to_device,
        bytes_to_host=result.traffic.bytes_to_host,
        lookup_s=result.traffic.lookup_s,
        update_s=result.traffic.update_s,
        wait_s=result.traffic.wait_s,
        # in KiB on Linux
        peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20),
        domains={names[domain]: loss for domain, loss in sorted(result.domain_loss.items())},
        skipped=result.skipped,
    )
