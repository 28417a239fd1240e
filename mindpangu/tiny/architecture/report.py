"""What became of the points: ranks, correlations, a table and a picture."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mindpangu.tiny.architecture.points import Point
from mindpangu.tiny.architecture.ranking import Correlation, mean_ranks

TRAITS = ("depth", "width", "expansion")
MEASURES = {
    "bits_per_byte": "held-out bits/byte",
    "train_tokens_per_s": "training tokens/s",
    "decode_tokens_per_s": "decoding tokens/s",
}


@dataclass(frozen=True)
class Outcome:
    """A point with its measures.

    Attributes:
        measures: bits_per_byte of held-out text, the lower the better; train_tokens_per_s and decode_tokens_per_s,
            medians on a machine that others may have used.
        ranks: of each measure among all points, 1 being the best; equal values share their mean rank.
    """

    point: Point
    measures: dict[str, float]
    heldout: list[dict[str, Any]] = field(default_factory=list)
    ranks: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def from_result(point: Point, result: dict[str, Any]) -> "Outcome":
        """From what a trial wrote."""
        return Outcome(point, {name: result[name] for name in MEASURES}, result["heldout"])

    def to_dict(self) -> dict[str, Any]:
        """For a report."""
        return self.point.to_dict() | self.measures | {"ranks": self.ranks, "heldout": self.heldout}


def rank(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes with their ranks, the lowest loss first."""
    ranks = {}
    for name in MEASURES:
        better = 1 if name == "bits_per_byte" else -1
        ranks[name] = mean_ranks([better * outcome.measures[name] for outcome in outcomes]).tolist()
    ranked = [
        replace(outcome, ranks={name: ranks[name][place] for name in MEASURES})
        for place, outcome in enumerate(outcomes)
    ]
    return sorted(ranked, key=lambda outcome: outcome.ranks["bits_per_byte"])


@dataclass(frozen=True)
class Correlations:
    """Spearman's ρ of each trait with each measure: (trait, measure) → correlation."""

    of: dict[tuple[str, str], Correlation]
    points: int

    @staticmethod
    def among(outcomes: Sequence[Outcome]) -> "Correlations":
        """Over the points of a search."""
        return Correlations(
            {
                (trait, measure): Correlation.between(
                    [getattr(outcome.point, trait) for outcome in outcomes],
                    [outcome.measures[measure] for outcome in outcomes],
                )
                for trait in TRAITS
                for measure in MEASURES
            },
            len(outcomes),
        )

    def to_dict(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """trait → measure → ρ and interval."""
        return {trait: {measure: self.of[trait, measure].to_dict() for measure in MEASURES} for trait in TRAITS}

    def __str__(self) -> str:
        lines = [f"Spearman's ρ over {self.points} points (95 % interval, bootstrap)"]
        lines.append(f"{'':>10}" + "".join(f" {title:>24}" for title in MEASURES.values()))
        for trait in TRAITS:
            lines.append(f"{trait:>10}" + "".join(f" {self.of[trait, measure]!s:>24}" for measure in MEASURES))
        return "\n".join(lines)


def format_outcomes(outcomes: Sequence[Outcome]) -> str:
    """A row for each point, the lowest loss first; the ranks of the speeds stand behind them."""
    lines = [
        f"{'rank':>5} {'depth':>6} {'width':>6} {'expansion':>10} {'parameters':>14} {'bits/byte':>10} "
        f"{'training tokens/s':>23} {'decoding tokens/s':>23}"
    ]
    for outcome in outcomes:
        point, measures, ranks = outcome.point, outcome.measures, outcome.ranks
        speeds = " ".join(
            f"{measures[name]:>15,.0f} ({ranks[name]:>5g})" for name in ("train_tokens_per_s", "decode_tokens_per_s")
        )
        lines.append(
            f"{ranks['bits_per_byte']:>5g} {point.depth:>6} {point.width:>6} {point.expansion:>10.2f} "
            f"{point.parameters:>14,} {measures['bits_per_byte']:>10.4f} {speeds}"
        )
    lines.append("bits/byte: mean over domains of held-out text; speeds: medians, on this machine as it was")
    return "\n".join(lines)


def plot_outcomes(outcomes: Sequence[Outcome], path: Path) -> None:
    """Writes a PNG: held-out loss over depth, width and expansion; the colour is the decoding speed."""
    # matplotlib takes long to import, and drawing is rare; a Figure without pyplot needs no display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    panels = figure.subplots(1, len(TRAITS), sharey=True)
    losses = [outcome.measures["bits_per_byte"] for outcome in outcomes]
    speeds = [outcome.measures["decode_tokens_per_s"] for outcome in outcomes]
    for panel, trait in zip(panels, TRAITS, strict=True):
        values = [getattr(outcome.point, trait) for outcome in outcomes]
        dots = panel.scatter(values, losses, c=speeds, cmap="viridis", s=36, edgecolors="0.3", linewidths=0.4)
        panel.set_xlabel(trait)
        panel.set_title(f"ρ = {Correlation.between(values, losses)}", fontsize=10)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("held-out bits per byte")
    figure.colorbar(dots, ax=panels, label="decoding tokens/s")
    figure.savefig(path, format="png", dpi=120)
