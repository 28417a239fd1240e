"""Plots the load of a routing table: one panel per domain, experts sorted by load, highest first."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mindpangu.figures import write_optional_figure
from mindpangu.routing.statistics import LoadStatistics, format_load

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can distinguish, also in greyscale
_COLOURS = {"balanced": "#0072B2", "random": "#D55E00", "balanced+random": "#009E73"}
_STYLES: dict[str, Any] = {"training text": "-", "held-out text": ":"}
_MAX_COLUMNS = 4


def plot_load(statistics: Sequence[LoadStatistics], path: Path) -> None:
    """Writes a PNG with the load of each expert, one thin line per RRE layer.

    Args:
        statistics: statistics of one table, or of several tables to compare (random and balanced) on the same domains.
        path: the PNG file; its folder is created.
    """
    domains = list(dict.fromkeys(group.domain for group in statistics[0].groups))
    columns = min(len(domains), _MAX_COLUMNS if len(domains) > _MAX_COLUMNS else 2)
    rows = -(-len(domains) // columns)
    size = (max(4.0 * columns, 7.0), 2.8 * rows + 1.5)
    write_optional_figure(path, size, lambda figure: _draw(figure, statistics, domains, rows, columns))


def _draw(
    figure: "Figure", statistics: Sequence[LoadStatistics], domains: Sequence[str], rows: int, columns: int
) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for panel in panels.ravel()[len(domains) :]:
        panel.remove()

    for panel, domain in zip(panels.ravel(), domains, strict=False):
        panel.axhline(1, color="0.6", linewidth=0.8)
        for line, compared in enumerate(statistics):
            groups = compared.of_domain(domain)
            colour = _COLOURS[compared.assignment]
            for group in groups:
                for load, style in zip((group.train, group.heldout), _STYLES.values(), strict=True):
                    loads = np.sort(load.relative_E)[::-1]
                    panel.plot(np.arange(1, loads.size + 1), loads, style, color=colour, linewidth=1.1, alpha=0.7)
            # The curves fall from the left, so the upper right corner is free.
            worst = [max(getattr(group, text).max_over_mean for group in groups) for text in ("train", "heldout")]
            panel.text(
                0.98,
                0.97 - 0.1 * line,
                f"{compared.assignment}: max/mean {format_load(worst[0])}, held out {format_load(worst[1])}",
                transform=panel.transAxes,
                ha="right",
                va="top",
                fontsize=8,
                color=colour,
            )
        panel.set_title(domain, fontsize=11)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.spines[["top", "right"]].set_visible(False)
    # Must come last because it turns off autoscaling. The panels share the axis; the margin leaves room for the text.
    panels[0, 0].set_ylim(0, 1.1 * panels[0, 0].get_ylim()[1])

    figure.suptitle("Load of the experts relative to the mean (grey line), one line per RRE layer", fontsize=12)
    for panel in panels[:, 0]:
        panel.set_ylabel("tokens / mean", fontsize=9)
    for panel in panels.ravel()[max(len(domains) - columns, 0) : len(domains)]:
        panel.set_xlabel("experts of the group, most loaded first", fontsize=9)
    legend = [
        Line2D([], [], color=_COLOURS[compared.assignment], label=compared.assignment, linewidth=2.5)
        for compared in statistics
    ] + [Line2D([], [], color="0.2", linestyle=style, label=text) for text, style in _STYLES.items()]
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), frameon=False)
