"""The flat records of `tools/bench_ecss.py`."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ecss_bench.workload import LARGEST_MICRO_BATCH, Measured, Workload


@dataclass(frozen=True)
class Record:
    """Result of one mode in one case: medians over the measured steps.

    Attributes:
        case: name of the case.
        mode: host_ecss or host_full.
        experts_total: number of experts in the model.
        experts_active: number of experts that a step activates.
        tokens_per_step, tokens_per_s: size of a step, and throughput.
        step_s: seconds per step.
        wait_s: seconds per step that training waited for experts.
        bytes_to_device, bytes_to_host: measured bytes per step.
        bytes_planned: bytes per step in both directions, computed from the route plans.
        ratio_to_host_full: measured step time of host_full divided by this one; None if host_full did not run.
        experts_updated: number of experts that Adam updates per step.
        predicted_s: step time by the linear model, or the bound that the case is compared with; None without either.
        calibrates: True if the linear model was fitted to this record.
        moving_share: share of transfer and update in predicted_s, by the linear model; None without one.
        note: further information.
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


def record(
    case: str, mode: str, workload: Workload, tokens: int, measured: Sequence[Measured], **others: Any
) -> Record:
    """Summarises a mode's measured steps."""
    seconds = median(each.seconds for each in measured)
    moving = workload.num_experts if mode == "host_full" else workload.active_experts
    trips = 1 + max(1, tokens // LARGEST_MICRO_BATCH)  # once to the device, and back after each micro-batch
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
