"""What the figures are held against: each bound, the worst value that a run's records give, and whether it holds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ecss_bench.curve import PAPER_RATIO, ratios
from ecss_bench.records import Record

DOMINATES = 0.9
"""Transfer and update dominate where the model gives them nine tenths of host_full's time."""


@dataclass(frozen=True)
class Bound:
    """`text` names what is bounded; it holds if `value` is at most (or at least) `limit`."""

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
    """The bounds that these records can be held against."""
    for case in dict.fromkeys(each.case for each in records if each.case.startswith("sigma")):
        yield from _sigma_bounds(case, [each for each in records if each.case == case])
    active = {each.experts_total: each.step_s for each in records if each.case.startswith("active")}
    if active:
        value = active[max(active)] / active[min(active)]
        yield Bound(f"active: time with {max(active)} experts over that with {min(active)}", value, 1.25)
    for each in records:
        if each.case.startswith("overlap") and "no overlap" not in each.case:
            yield Bound(f"{each.case}: time over max(…) of its parts", each.step_s / each.predicted_s, 1.1)


def _sigma_bounds(case: str, records: Sequence[Record]) -> Iterator[Bound]:
    few, every = (
        sorted((each for each in records if each.mode == mode), key=lambda each: each.tokens_per_step)
        for mode in ("host_ecss", "host_full")
    )
    for name in ("bytes_to_device", "bytes_to_host", "experts_updated"):
        off = max(
            abs(getattr(mine, name) / getattr(all_, name) * mine.experts_total / mine.experts_active - 1)
            for mine, all_ in zip(few, every, strict=True)
        )
        yield Bound(f"{case}: {name} over host_full's, relative to ρ, off by", off, 0.01)
    measured, predicted = (dict(ratios(records, seconds)) for seconds in ("step_s", "predicted_s"))
    unseen = [each.tokens_per_step for each in few if not each.calibrates]
    if unseen:
        off = max(abs(predicted[tokens] / measured[tokens] - 1) for tokens in unseen)
        yield Bound(f"{case}: predicted ratio where the model was not fitted, off by", off, 0.15)
    dominated = [each.tokens_per_step for each in every if each.moving_share > DOMINATES]
    if dominated:
        text = f"{case}: ratio to host_full where transfer and update dominate ({dominated} tokens)"
        yield Bound(text, min(measured[tokens] for tokens in dominated), PAPER_RATIO, at_least=True)
