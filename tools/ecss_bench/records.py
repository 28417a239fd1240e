"""The flat records of `tools/bench_ecss.py`."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ecss_bench.workload import LARGEST_MICRO_BATCH, Measured, Workload


@dataclass(frozen=True)
class Record:
    """One mode in one case: medians over the measured steps.

    Attributes:
        case: what was measured. mode: host_ecss or host_full.
        experts_total, experts_active: of the model, and those that a step activates.
        tokens_per_step, tokens_per_s. step_s: seconds of a step. wait_s: of it, training waited for experts.
        bytes_to_device, bytes_to_host: measured. bytes_planned: of both directions, from the route plans alone.
        ratio_to_host_full: host_full's step time over this one's, both measured; None where host_full did not run.
        experts_updated: rows of Adam in a step, counted in experts.
        predicted_s: step time by the linear model, or the bound that the case is held against; None if there is none.
        calibrates: whether the linear model was fitted to this record.
        moving_share: of predicted_s, the part of bytes and Adam rows, in the linear model; None without one.
        note: what else to know.
    """

    case: str
    mode: str
    experts_total: int
    experts_active: int
    tokens_per_step: int
    tokens_per_s: float
    step_s: float
    wait_s: float
    bytes_to_device: int
    bytes_to_host: int
    bytes_planned: int
    ratio_to_host_full: float | None = None
    experts_updated: int = 0
    predicted_s: float | None = None
    calibrates: bool = False
    moving_share: float | None = None
    note: str = ""


def record(case: str, mode: str, workload: Workload, tokens: int, measured: Sequence[Measured], **others) -> Record:
    """The record of a mode's measured steps."""
    seconds = median(each.seconds for each in measured)
    moving = workload.num_experts if mode == "host_full" else workload.active_experts
    trips = 1 + max(1, tokens // LARGEST_MICRO_BATCH)  # to the device once, back after each micro-batch
    return Record(
        case=case,
        mode=mode,
        experts_total=workload.num_experts,
        experts_active=int(median(each.traffic.activated for each in measured)),
        tokens_per_step=tokens,
        tokens_per_s=tokens / seconds,
        step_s=seconds,
        wait_s=median(each.traffic.wait_s for each in measured),
        bytes_to_device=int(median(each.traffic.bytes_to_device for each in measured)),
        bytes_to_host=int(median(each.traffic.bytes_to_host for each in measured)),
        bytes_planned=trips * moving * 4 * workload.expert_parameters,
        experts_updated=int(median(each.updated for each in measured)),
        **others,
    )
