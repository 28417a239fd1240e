"""Cases `sigma …`: both host modes in Σ's layout, from few tokens a step to many; what a linear model makes of it."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np

from ecss_bench.linear_model import Work, calibrate
from ecss_bench.records import Record, record
from ecss_bench.workload import PacedLink, Workload
from mindpangu.experts import Link

MODES = ("host_full", "host_ecss")
PAPER_RATIO = 6.3


@dataclasses.dataclass(frozen=True)
class Point:
    """Both modes at one number of tokens over one link.

    Attributes:
        records, works: of host_full and of host_ecss.
        byte_seconds, parameter_seconds: of one byte over the link and one parameter in Adam, measured alone.
    """

    records: tuple[Record, Record]
    works: tuple[Work, Work]
    byte_seconds: float
    parameter_seconds: float


def sigma_point(
    hidden: int, layers: int, tokens: int, speeds: Sequence[float | None], rounds: int, steps: int
) -> list[Point]:
    """Both modes in turns, over links of these speeds in GB/s (None: that of the memory).

    Args:
        rounds: how often the modes take turns. steps: measured steps of a turn (one more is not counted).
    """
    workload = Workload(hidden, layers)
    return [_measure(workload, tokens, speed, rounds, steps) for speed in speeds]


def _measure(workload: Workload, tokens: int, gigabytes_per_s: float | None, rounds: int, steps: int) -> Point:
    threads = workload.config.experts.host_threads
    links = {mode: PacedLink(threads, gigabytes_per_s) if gigabytes_per_s else Link(threads) for mode in MODES}
    experts = {mode: workload.experts(mode, link=links[mode]) for mode in MODES}
    measured = {mode: [] for mode in MODES}
    for turn in range(rounds + 1):
        for mode in MODES:
            run = workload.run(experts[mode], workload.steps(tokens, steps + 1))[1:]
            if turn:  # the first turn compiles
                measured[mode] += run
    case = f"sigma {gigabytes_per_s} GB/s" if gigabytes_per_s else "sigma"
    full, few = (record(case, mode, workload, tokens, measured[mode]) for mode in MODES)
    few = dataclasses.replace(few, ratio_to_host_full=full.step_s / few.step_s)
    full = dataclasses.replace(full, ratio_to_host_full=1.0)
    works = tuple(_work(each, workload, paced=gigabytes_per_s is not None) for each in (full, few))
    return Point((full, few), works, *alone(workload, links["host_ecss"]))


def sigma_curve(points: Sequence[Point]) -> list[Record]:
    """The records of the points over one link, with what a linear model makes of them.

    The model is fitted to the smallest and the largest number of tokens and predicts those between them.
    """
    records = [each for point in points for each in point.records]
    works = [each for point in points for each in point.works]
    ends = {function(each.tokens_per_step for each in records) for function in (min, max)}
    records = [dataclasses.replace(each, calibrates=each.tokens_per_step in ends) for each in records]
    known = [position for position, each in enumerate(records) if each.calibrates]
    costs = (median(getattr(point, name) for point in points) for name in ("byte_seconds", "parameter_seconds"))
    model = calibrate([works[position] for position in known], [records[position].step_s for position in known], *costs)
    return [
        dataclasses.replace(
            each, predicted_s=model.seconds(work), moving_share=model.moving_seconds(work) / model.seconds(work)
        )
        for each, work in zip(records, works, strict=True)
    ]


def _work(each: Record, workload: Workload, paced: bool) -> Work:
    """The step's work as far as it takes time.

    A slow link sleeps, so what it brings ahead of its use, beside the step before, costs nothing: all that goes to the
    device where the domains alternate. A link at the speed of memory takes the processors' time in any case.
    """
    hidden = paced and each.mode == "host_ecss"
    return Work(
        bytes_moved=each.bytes_to_host + (0 if hidden else each.bytes_to_device),
        adam_parameters=each.experts_updated * workload.expert_parameters,
        flops=each.tokens_per_step * workload.flops_per_token(),
    )


def alone(workload: Workload, link: Link) -> tuple[float, float]:
    """Seconds of one byte over the link, and of one parameter in Adam, with nothing beside them."""
    store = workload.store
    slabs = [slab["up"] for slab in store.weights[0]]
    target = np.ones_like(slabs[0])
    copying = _median_seconds(lambda: [link.copy([(target, slab)]) for slab in slabs]) / sum(s.nbytes for s in slabs)
    chosen_LMA = np.zeros_like(store.exists_LMA)
    chosen_LMA[:, 0] = store.exists_LMA[:, 0]
    gradient = [np.full((store.group_size, *shape), 1e-3, np.float32) for shape in store.shapes.values()]
    gradients = {(layer, 0): gradient for layer in range(store.num_layers)}
    updating = _median_seconds(lambda: store.update(gradients, chosen_LMA, 1e-4, 1.0))
    return copying, updating / (int(chosen_LMA.sum()) * workload.expert_parameters)


def ratios(records: Sequence[Record], seconds: str) -> list[tuple[int, float]]:
    """(tokens a step, time of host_full over that of host_ecss), by `step_s` or `predicted_s`."""
    times = {(each.mode, each.tokens_per_step): getattr(each, seconds) for each in records}
    tokens = sorted({each.tokens_per_step for each in records})
    return [(count, times["host_full", count] / times["host_ecss", count]) for count in tokens]


def crossing(records: Sequence[Record]) -> str:
    """Where the ratio falls below the paper's, by measurement and by the model."""
    texts = []
    for seconds in ("step_s", "predicted_s"):
        curve = ratios(records, seconds)
        found = "none"
        for (tokens, ratio), (more_tokens, lower_ratio) in itertools.pairwise(curve):
            if ratio >= PAPER_RATIO > lower_ratio:
                share = (ratio - PAPER_RATIO) / (ratio - lower_ratio)
                found = f"{tokens * (more_tokens / tokens) ** share:.0f}"
        texts.append(found)
    return f"{PAPER_RATIO} × is crossed at {texts[0]} tokens a step as measured, at {texts[1]} by the linear model"


def _median_seconds(work: Callable[[], object], repetitions: int = 5) -> float:
    work()
    seconds = []
    for _ in range(repetitions):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return median(seconds)
