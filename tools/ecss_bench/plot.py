"""Plots step times and the ratio to plain heterogeneous training over tokens per step, measured and predicted."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ecss_bench.curve import PAPER_RATIO, ratios
from ecss_bench.records import Record
from mindpangu.figures import write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_records(records: Sequence[Record], file: Path) -> None:
    """Plots the records of one curve to a file."""
    write_figure(file, (12, 4.5), lambda figure: _draw(figure, records))


def _draw(figure: "Figure", records: Sequence[Record]) -> None:
    ecss, full = ([r for r in records if r.mode == mode] for mode in ("host_ecss", "host_full"))
    left, right = figure.subplots(1, 2)
    for rows, colour in ((full, "#888888"), (ecss, "#3465a4")):
        tokens = [each.tokens_per_step for each in rows]
        left.plot(tokens, [each.step_s for each in rows], "o", color=colour, label=f"{rows[0].mode}, measured")
        left.plot(tokens, [each.predicted_s for each in rows], "-", color=colour, linewidth=1, label="linear model")
    left.set_title(ecss[0].case)
    left.set_ylabel("seconds per step")
    left.set_yscale("log")
    for seconds, style, label in (("step_s", "o", "measured"), ("predicted_s", "-", "linear model")):
        right.plot(*zip(*ratios(records, seconds), strict=True), style, color="#3465a4", linewidth=1, label=label)
    right.axhline(PAPER_RATIO, color="black", linewidth=0.8, linestyle=":", label=f"PanGu-Σ's {PAPER_RATIO} ×")
    right.set_ylabel("time of host_full / time of host_ecss")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("tokens per step")
        axes.legend(fontsize=8)
