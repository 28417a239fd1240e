"""Draws the step times of every case, with the limit of the matrix products."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mindpangu.figures import write_figure

if TYPE_CHECKING:
    from bench_step import Record
    from matplotlib.figure import Figure


def plot_records(records: "Sequence[Record]", file: Path) -> None:
    """Plots the records to a file."""
    write_figure(file, (10, 4.5), lambda figure: _draw(figure, records))


def _draw(figure: "Figure", records: "Sequence[Record]") -> None:
    axes = figure.subplots()
    cases = list(dict.fromkeys(record.case for record in records))
    stacks = list(dict.fromkeys(record.stack for record in records))
    width = 0.8 / len(stacks)
    for index, stack in enumerate(stacks):
        rows = [record for record in records if record.stack == stack]
        places = [cases.index(record.case) + (index - (len(stacks) - 1) / 2) * width for record in rows]
        axes.bar(places, [record.step_s for record in rows], width, label=stack)
    for record in records:
        if record.gemm_limit_s and record.stack == stacks[0]:
            place = cases.index(record.case)
            label = "matrix products alone" if place == 0 else None
            axes.hlines(record.gemm_limit_s, place - 0.45, place + 0.45, colors="black", linestyles=":", label=label)
    shapes = {record.case: f"{record.case}: {record.model}\n{record.shape}" for record in records}
    axes.set_xticks(range(len(cases)), [shapes[case] for case in cases], fontsize=7)
    axes.set_ylabel("seconds per step")
    axes.legend()
