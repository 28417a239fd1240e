"""Cases `sigma …`: both host modes in Σ's layout over tokens per step, and a linear model of their step times."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np

from ecss_bench.linear_model import Work, calibrate
from ecss_bench.records import Record, record
from ecss_bench.workload import Measured, PacedLink, Workload
from mindpangu.experts import Link

MODES = ("host_full", "host_ecss")
PAPER_RATIO = 6.3


@dataclasses.dataclass(frozen=True)
class Point:
    """Measurements of both modes at one step size over one link.

    Attributes:
        records, works: records and work of host_full and of host_ecss.
        byte_seconds, parameter_seconds: seconds per byte over the link and per parameter in Adam, measured alone.
    """

    records: tuple[Record, Record]
    works: tuple[Work, Work]
    byte_seconds: float
    parameter_seconds: float


def sigma_point(
    hidden: int, layers: int, tokens: int, speeds: Sequence[float | None], rounds: int, steps: int
) -> list[Point]:
    """Measures both modes in turns over several links.

    Args:
        hidden, layers: size of the model.
        tokens: tokens per step.
        speeds: speeds of the links in GB/s; None means the speed of memory.
        rounds: number of turns of each mode.
        steps: measured steps per turn, which follow an unmeasured one.
    """
    workload = Workload(hidden, layers)
    return [_measure(workload, tokens, speed, rounds, steps) for speed in speeds]


def _measure(workload: Workload, tokens: int, gigabytes_per_s: float | None, rounds: int, steps: int) -> Point:
    threads = workload.config.experts.host_threads
    links = {mode: PacedLink(threads, gigabytes_per_s) if gigabytes_per_s else Link(threads) for mode in MODES}
    experts = {mode: workload.experts(mode, link=links[mode]) for mode in MODES}
    measured: dict[str, list[Measured]] = {mode: [] for mode in MODES}
    for turn in range(rounds + 1):
        for mode in MODES:
            run = workload.run(experts[mode], workload.steps(tokens, steps + 1))[1:]
            if turn:  # the first turn compiles
                measured[mode] += run
    case = f"sigma {gigabytes_per_s} GB/s" if gigabytes_per_s else "sigma"
    full, ecss = (record(case, mode, workload, tokens, measured[mode]) for mode in MODES)
    ecss = dataclasses.replace(ecss, ratio_to_host_full=full.step_s / ecss.step_s)
    full = dataclasses.replace(full, ratio_to_host_full=1.0)
    paced = gigabytes_per_s is not None
    works = (_work(full, workload, paced), _work(ecss, workload, paced))
    return Point((full, ecss), works, *measure_unit_costs(workload, links["host_ecss"]))


def sigma_curve(points: Sequence[Point]) -> list[Record]:
    """Returns the records of the points over one link, with the predictions of a linear model.

    The model is fitted to the smallest and the largest step size, and predicts those in between.
    """
    records = [each for point in points for each in point.records]
    works = [each for point in points for each in point.works]
    ends = {function(each.tokens_per_step for each in records) for function in (min, max)}
    records = [dataclasses.replace(each, calibrates=each.tokens_per_step in ends) for each in records]
    fitted = [index for index, each in enumerate(records) if each.calibrates]
    model = calibrate(
        [works[index] for index in fitted],
        [records[index].step_s for index in fitted],
        median(point.byte_seconds for point in points),
        median(point.parameter_seconds for point in points),
    )
    return [
        dataclasses.replace(
            each, predicted_s=model.seconds(work), moving_share=model.moving_seconds(work) / model.seconds(work)
        )
        for each, work in zip(records, works, strict=True)
    ]


def _work(each: Record, workload: Workload, paced: bool) -> Work:
    """Returns the part of a step's work that takes time.

    A slow link sleeps, so transfers ahead of their use, during the step before, cost no time. With alternating domains
    these are all transfers to the device. A link at the speed of memory always takes processor time.
    """
    hidden = paced and each.mode == "host_ecss"
    return Work(
        bytes_moved=each.bytes_to_host + (0 if hidden else each.bytes_to_device),
        adam_parameters=each.experts_updated * workload.expert_parameters,
        flops=each.tokens_per_step * workload.flops_per_token(),
    )


def measure_unit_costs(workload: Workload, link: Link) -> tuple[float, float]:
    """Measures the seconds per byte over the link and per parameter in Adam, each without other work."""
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
    """Returns (tokens per step, time of host_full / time of host_ecss), where time is `step_s` or `predicted_s`."""
    times = {(each.mode, each.tokens_per_step): getattr(each, seconds) for each in records}
    tokens = sorted({each.tokens_per_step for each in records})
    return [(count, times["host_full", count] / times["host_ecss", count]) for count in tokens]


def crossing(records: Sequence[Record]) -> str:
    """Says at which step size the ratio falls below the paper's, as measured and by the linear model."""
    texts = []
    for seconds in ("step_s", "predicted_s"):
        curve = ratios(records, seconds)
        tokens_at_crossing = "none"
        for (tokens, ratio), (next_tokens, next_ratio) in itertools.pairwise(curve):
            if ratio >= PAPER_RATIO > next_ratio:
                share = (ratio - PAPER_RATIO) / (ratio - next_ratio)
                tokens_at_crossing = f"{tokens * (next_tokens / tokens) ** share:.0f}"
        texts.append(tokens_at_crossing)
    return f"{PAPER_RATIO} × is crossed at {texts[0]} tokens per step as measured, at {texts[1]} by the linear model"


def _median_seconds(work: Callable[[], object], repetitions: int = 5) -> float:
    work()
    seconds = []
    for _ in range(repetitions):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return median(seconds)
