"""Draws the plot of `--plot`: the kernels against their limits, and their speed-up over composed and torch."""

from collections.abc import Sequence
from pathlib import Path

from ascend_ops.bench.report import Record
from ascend_ops.files import scratch_file

GOALS = (0.7, 0.8, 1.0)
COLOURS = {"limit": "#3465a4", "composed": "#888888", "torch": "#d9822b"}


def plot_records(records: Sequence[Record], file: Path) -> None:
    """Draws bars for every case of backend "cpu", or of "composed" if there are no kernels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    backend = "cpu" if any(record.backend == "cpu" for record in records) else "composed"
    shown = [record for record in records if record.backend == backend]
    labels = [f"{record.op}  {record.shape}  {record.direction}" for record in shown]
    heights = list(range(len(shown)))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(14, 1.6 + 0.34 * max(len(shown), 1)), sharey=True)
    left.barh(heights, [record.vs_limit or 0 for record in shown], color=COLOURS["limit"])
    for goal in GOALS:
        left.axvline(goal, color="black", linewidth=0.8, linestyle="-" if goal == 1 else ":")
    left.set_xticks([0, *GOALS])
    left.set_xlabel("time of the limit / time (1 = at the limit)")
    left.set_title(f"backend {backend}: share of the limit")
    left.set_yticks(heights, labels, fontsize=8)
    left.invert_yaxis()
    for offset, other in ((-0.2, "composed"), (0.2, "torch")):
        ratios = [getattr(record, f"vs_{other}") or 1 for record in shown]
        middles = [height + offset for height in heights]
        # bars start at 1: one to the left is a slowdown
        right.barh(middles, [ratio - 1 for ratio in ratios], 0.4, left=1, color=COLOURS[other], label=f"over {other}")
    right.axvline(1, color="black", linewidth=0.8)
    right.set_xscale("log")
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50) if tick <= 2 * right.get_xlim()[1]]
    right.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    right.minorticks_off()
    right.set_xlabel("speed-up (logarithmic)")
    right.set_title(f"backend {backend}: speed-up")
    right.legend(fontsize=8)
    figure.tight_layout()
    with scratch_file(file) as scratch:
        figure.savefig(scratch, format=file.suffix[1:] or "png", dpi=120)
    pyplot.close(figure)
