"""Cases `overlap …`: how much of a slow link's time hides behind computation."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from types import SimpleNamespace
from typing import Any

from mindspore import Tensor

from ecss_bench.records import Record, record
from ecss_bench.workload import Measured, PacedLink, Workload


@dataclass(frozen=True)
class Parts:
    """Seconds that each part of a step takes alone. `lower_forward` includes the rest, such as the dense update."""

    lower_forward: float
    upper_step: float
    lower_backward: float
    update: float

    @property
    def compute(self) -> float:
        return self.lower_forward + self.upper_step + self.lower_backward


def overlap_cases(
    workload: Workload, tokens: int, gigabytes_per_s: float, rounds: int, steps: int, log: Callable[[str], None]
) -> list[Record]:
    """Measures alternating and repeated domains over a paced link, with and without overlap.

    predicted_s of the records is the bound:

    alternating: max(compute + update, transfer + update), as transfers do not depend on the step that they overlap;
    repeated:    upper_step + max(lower_backward, to_host) + max(lower_forward, update + to_device), as the next step
                 needs the experts that this step updates;
    no overlap:  the sum of all parts.
    """
    parts = measure_parts(workload, tokens, rounds * steps)
    one_way = 4 * workload.expert_parameters * workload.active_experts / (1e9 * gigabytes_per_s)
    bounds = {
        "alternating": max(parts.compute + parts.update, 2 * one_way + parts.update),
        "repeated": parts.upper_step
        + max(parts.lower_backward, one_way)
        + max(parts.lower_forward, parts.update + one_way),
        "no overlap": parts.compute + 2 * one_way + parts.update,
    }
    link = PacedLink(workload.config.experts.host_threads, gigabytes_per_s)
    experts = {name: workload.experts("host_ecss", name != "no overlap", link=link) for name in bounds}
    measured: dict[str, list[Measured]] = {name: [] for name in bounds}
    for _ in range(rounds):
        for name in bounds:
            planned = workload.steps(tokens, steps + 1, repeat=name == "repeated")
            measured[name] += workload.run(experts[name], planned)[1:]
    note = (
        f"link {gigabytes_per_s} GB/s: {one_way:.3f} s each way; lower_forward {parts.lower_forward:.3f}, upper_step "
        f"{parts.upper_step:.3f}, lower_backward {parts.lower_backward:.3f}, update {parts.update:.3f} s"
    )
    log(note)
    records = []
    for name, bound in bounds.items():
        each = record(f"overlap {name} {gigabytes_per_s} GB/s", "host_ecss", workload, tokens, measured[name])
        records.append(replace(each, predicted_s=bound, note=note))
        log(f"{name}: {each.step_s:.3f} s, bound {bound:.3f} s, ratio {each.step_s / bound:.2f}")
    return records


def measure_parts(workload: Workload, tokens: int, repetitions: int) -> Parts:
    """Measures each part of a step alone, in the mode that moves no experts."""
    resident = workload.experts("device")
    functions = workload.step.functions
    steps = workload.steps(tokens, repetitions + 1)
    total = median(each.seconds for each in workload.run(resident, steps)[1:])
    clock = Clock()
    workload.step.functions = SimpleNamespace(  # type: ignore[assignment]
        lower_forward=functions.lower_forward,
        upper_step=clock.timed("upper_step", functions.upper_step),
        lower_backward=clock.timed("lower_backward", functions.lower_backward),
    )
    resident.update = clock.timed("update", resident.update)  # type: ignore[method-assign]
    workload.run(resident, steps)
    workload.step.functions = functions
    parts = {name: median(seconds[1:]) for name, seconds in clock.seconds.items()}
    return Parts(lower_forward=total - sum(parts.values()), **parts)


class Clock:
    """Records the seconds of each call of some functions, and waits for their arguments and results."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function that calls `function` and records the seconds under `name`."""

        def call(*arguments: Any) -> Any:
            for each in _tensors(arguments):
                each.asnumpy()
            started = time.perf_counter()
            result = function(*arguments)
            for each in _tensors(result):
                each.asnumpy()
            self.seconds[name].append(time.perf_counter() - started)
            return result

        return call


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [each for part in value for each in _tensors(part)] if isinstance(value, tuple | list) else []
