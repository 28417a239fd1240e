"""Compares the records of a run with bounds: the worst value for each bound, and whether it holds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ecss_bench.curve import PAPER_RATIO, ratios
from ecss_bench.records import Record

DOMINATES = 0.9
"""Transfer and update dominate if they take more than this share of host_full's time in the linear model."""


@dataclass(frozen=True)
class Bound:
    """A bound on a figure.

    Attributes:
        text: name of the figure.
        value: the worst value in the records.
        limit: the bound.
        at_least: True for a lower bound, False for an upper bound.
    """

    text: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        relation = "at least" if self.at_least else "at most"
        return f"{'holds' if self.holds else 'MISSED':7}{self.text}: {self.value:.3g}, {relation} {self.limit:.3g}"


def bounds(records: Sequence[Record]) -> Iterator[Bound]:
    """Yields the bounds that apply to the records."""
    for case in dict.fromkeys(each.case for each in records if each.case.startswith("sigma")):
        yield from _sigma_bounds(case, [each for each in records if each.case == case])
    active = {each.experts_total: each.step_s for each in records if each.case.startswith("active")}
    if active:
        value = active[max(active)] / active[min(active)]
        yield Bound(f"active: time with {max(active)} experts / time with {min(active)}", value, 1.25)
    for each in records:
        if each.case.startswith("overlap") and "no overlap" not in each.case and each.predicted_s is not None:
            yield Bound(f"{each.case}: time / max(…) of its parts", each.step_s / each.predicted_s, 1.1)


def _sigma_bounds(case: str, records: Sequence[Record]) -> Iterator[Bound]:
    ecss, full = (
        sorted((each for each in records if each.mode == mode), key=lambda each: each.tokens_per_step)
        for mode in ("host_ecss", "host_full")
    )
    for name in ("bytes_to_device", "bytes_to_host", "experts_updated"):
        error = max(
            abs(getattr(one, name) / getattr(other, name) * one.experts_total / one.experts_active - 1)
            for one, other in zip(ecss, full, strict=True)
        )
        yield Bound(f"{case}: relative error of {name} / host_full's against ρ", error, 0.01)
    measured = dict(ratios(records, "step_s"))
    predicted = dict(ratios(records, "predicted_s"))
    unseen = [each.tokens_per_step for each in ecss if not each.calibrates]
    if unseen:
        error = max(abs(predicted[tokens] / measured[tokens] - 1) for tokens in unseen)
        yield Bound(f"{case}: relative error of the predicted ratio between the fitted points", error, 0.15)
    dominated = [each.tokens_per_step for each in full if (each.moving_share or 0) > DOMINATES]
    if dominated:
        text = f"{case}: ratio to host_full if transfer and update dominate ({dominated} tokens)"
        yield Bound(text, min(measured[tokens] for tokens in dominated), PAPER_RATIO, at_least=True)
