"""Summarises a search: ranking, correlations, a table and a plot."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindpangu.figures import write_optional_figure
from mindpangu.tiny.architecture.points import Point
from mindpangu.tiny.architecture.ranking import Correlation, mean_ranks
from mindpangu.tiny.trials.trial import TrialResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIMENSIONS = ("depth", "width", "expansion")
MEASURES = {
    "bits_per_byte": "held-out bits/byte",
    "train_tokens_per_s": "training tokens/s",
    "decode_tokens_per_s": "decoding tokens/s",
}


@dataclass(frozen=True)
class Outcome:
    """A point with its measures.

    Attributes:
        point: the architecture.
        measures: bits_per_byte of held-out text, lower is better; train_tokens_per_s and decode_tokens_per_s, medians
            on a machine that may have had other load.
        heldout: held-out loss of each domain.
        ranks: rank of each measure among all points, 1 is the best; equal values share their mean rank.
    """

    point: Point
    measures: dict[str, float]
    heldout: list[dict[str, Any]] = field(default_factory=list)
    ranks: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def from_result(point: Point, result: TrialResult) -> "Outcome":
        """Takes the measures from the result of a trial."""
        heldout = [asdict(domain) for domain in result.heldout]
        return Outcome(point, {name: getattr(result, name) for name in MEASURES}, heldout)

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry of the JSON report."""
        return self.point.to_dict() | self.measures | {"ranks": self.ranks, "heldout": self.heldout}


def rank(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Returns the outcomes with their ranks, the lowest loss first."""
    ranks = {}
    for name in MEASURES:
        sign = 1 if name == "bits_per_byte" else -1  # speeds rank in descending order
        ranks[name] = mean_ranks([sign * outcome.measures[name] for outcome in outcomes]).tolist()
    ranked = [replace(outcome, ranks={name: ranks[name][i] for name in MEASURES}) for i, outcome in enumerate(outcomes)]
    return sorted(ranked, key=lambda outcome: outcome.ranks["bits_per_byte"])


@dataclass(frozen=True)
class Correlations:
    """Spearman's ρ of each dimension with each measure.

    Attributes:
        values: (dimension, measure) → correlation.
        num_points: number of points that were correlated.
    """

    values: dict[tuple[str, str], Correlation]
    num_points: int

    @staticmethod
    def from_outcomes(outcomes: Sequence[Outcome]) -> "Correlations":
        """Computes the correlations over the points of a search."""
        return Correlations(
            {
                (dimension, measure): Correlation.between(
                    [getattr(outcome.point, dimension) for outcome in outcomes],
                    [outcome.measures[measure] for outcome in outcomes],
                )
                for dimension in DIMENSIONS
                for measure in MEASURES
            },
            len(outcomes),
        )

    def to_dict(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """Returns dimension → measure → ρ and interval."""
        return {
            dimension: {measure: self.values[dimension, measure].to_dict() for measure in MEASURES}
            for dimension in DIMENSIONS
        }

    def __str__(self) -> str:
        lines = [f"Spearman's ρ over {self.num_points} points (95 % interval, bootstrap)"]
        lines.append(f"{'':>10}" + "".join(f" {title:>24}" for title in MEASURES.values()))
        for dimension in DIMENSIONS:
            cells = [f" {self.values[dimension, measure]!s:>24}" for measure in MEASURES]
            lines.append(f"{dimension:>10}{''.join(cells)}")
        return "\n".join(lines)


def format_outcomes(outcomes: Sequence[Outcome]) -> str:
    """Formats a table with a row per point, with the rank of each speed in parentheses."""
    lines = [
        f"{'rank':>5} {'depth':>6} {'width':>6} {'expansion':>10} {'parameters':>14} {'bits/byte':>10} "
        f"{'training tokens/s':>23} {'decoding tokens/s':>23}"
    ]
    for outcome in outcomes:
        point = outcome.point
        measures = outcome.measures
        ranks = outcome.ranks
        speeds = " ".join(
            f"{measures[name]:>15,.0f} ({ranks[name]:>5g})" for name in ("train_tokens_per_s", "decode_tokens_per_s")
        )
        lines.append(
            f"{ranks['bits_per_byte']:>5g} {point.depth:>6} {point.width:>6} {point.expansion:>10.2f} "
            f"{point.parameters:>14,} {measures['bits_per_byte']:>10.4f} {speeds}"
        )
    lines.append("bits/byte: mean over domains of held-out text; speeds: medians on this machine, whatever else it ran")
    return "\n".join(lines)


def plot_outcomes(outcomes: Sequence[Outcome], path: Path) -> None:
    """Plots the held-out loss over depth, width and expansion, coloured by decoding speed, as PNG."""

    def draw(figure: "Figure") -> None:
        panels = figure.subplots(1, len(DIMENSIONS), sharey=True)
        losses = [outcome.measures["bits_per_byte"] for outcome in outcomes]
        speeds = [outcome.measures["decode_tokens_per_s"] for outcome in outcomes]
        for panel, dimension in zip(panels, DIMENSIONS, strict=True):
            values = [getattr(outcome.point, dimension) for outcome in outcomes]
            dots = panel.scatter(values, losses, c=speeds, cmap="viridis", s=36, edgecolors="0.3", linewidths=0.4)
            panel.set_xlabel(dimension)
            panel.set_title(f"ρ = {Correlation.between(values, losses)}", fontsize=10)
            panel.grid(alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("held-out bits per byte")
        figure.colorbar(dots, ax=panels, label="decoding tokens/s")

    write_optional_figure(path, (12, 3.8), draw)
