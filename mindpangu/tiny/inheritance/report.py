"""Reports parameter inheritance: a table, a JSON report and a plot."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mindpangu.config import Config
from mindpangu.figures import write_optional_figure
from mindpangu.files import scratch_files, write_json, write_text_atomically
from mindpangu.model.coupling import unit_shapes
from mindpangu.model.parameter_count import count_parameters, in_words
from mindpangu.stage import refuse_other_results
from mindpangu.tiny.inheritance.inheriting import Inheritance, Selection
from mindpangu.tiny.inheritance.layers import Window

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT = "report.json"
TABLE = "report.txt"
PLOT = "layers.png"

_SIZES = {"num_layers": "layers", "hidden_size": "channels", "num_heads": "heads", "ffn_hidden_size": "neurons"}


def write_report(out: Path, inheritance: Inheritance, parent: Config, child: Config, selection: Selection) -> None:
    """Writes report.json, report.txt, and layers.png into a folder. Each file is complete or stays as it was."""
    with scratch_files(out) as scratch:
        write_json(scratch / REPORT, as_dict(inheritance, parent, child, selection))
        write_text_atomically(scratch / TABLE, format_table(inheritance, parent, child, selection) + "\n")
        plot_windows(inheritance, scratch / PLOT)


def refuse_other_files(out: Path) -> None:
    """Raises StageError if `write_report` would replace files in a folder that it has not written."""
    refuse_other_results(out, REPORT, ["selection", "calibration_loss", "windows", "kept"], [TABLE])


def as_dict(inheritance: Inheritance, parent: Config, child: Config, selection: Selection) -> dict[str, Any]:
    """Returns the report: everything that was measured and selected."""
    return {
        "format_version": 1,
        "selection": asdict(selection),
        "sizes": {
            name: {key: getattr(config.model, key) for key in _SIZES} | {"parameters": count_parameters(config).total}
            for name, config in (("parent", parent), ("child", child))
        },
        "calibration_loss": {
            "parent": inheritance.full_loss,
            "without_layers": inheritance.loss_without_layers,
            "pruned": inheritance.pruned_loss,
        },
        "windows": [asdict(window) for window in inheritance.windows],
        "kept": {
            "layers": list(inheritance.kept.layers),
            "channels": inheritance.kept.units.channels.tolist(),
            **{
                kind: {str(layer): inheritance.kept.units.of(kind)[layer].tolist() for layer in inheritance.kept.layers}
                for kind in ("heads", "neurons", "bottleneck")
            },
        },
    }


def format_table(inheritance: Inheritance, parent: Config, child: Config, selection: Selection) -> str:
    """Formats the loss without each window, the sizes, and the loss of the pruned model before any training."""
    sizes = {label: (getattr(parent.model, key), getattr(child.model, key)) for key, label in _SIZES.items()}
    bottleneck = (unit_shapes(parent.model)["bottleneck"][1], unit_shapes(child.model)["bottleneck"][1])
    if bottleneck[0]:
        sizes["bottleneck"] = bottleneck
    counts = [in_words(count_parameters(config).total) for config in (parent, child)]
    removed = sorted(set(range(parent.model.num_layers)) - set(inheritance.kept.layers))
    return "\n".join(
        [
            "loss without layers (nats per token; a window begins at the layer of its row)",
            *_window_rows(inheritance.windows, removed, parent.model.num_layers),
            "",
            f"{'':>12} {'parent':>9} {'child':>9}",
            *(f"{label:>12} {large:>9,} {small:>9,}" for label, (large, small) in sizes.items()),
            f"{'parameters':>12} {counts[0]:>9} {counts[1]:>9}",
            "",
            f"{'loss':>9}  on {selection.calibration_batches} batches of training text",
            f"{inheritance.full_loss:>9.4f}  parent",
            f"{inheritance.loss_without_layers:>9.4f}  without layers {', '.join(map(str, removed)) or '(none)'}",
            f"{inheritance.pruned_loss:>9.4f}  child before training, units selected by {selection.method}",
        ]
    )


def _window_rows(windows: Sequence[Window], removed: Sequence[int], num_layers: int) -> list[str]:
    sizes = sorted({window.size for window in windows})
    losses = {(window.first, window.size): window.loss for window in windows}
    rows = [f"{'layer':>7}" + "".join(f" {f'{size} skipped':>10}" for size in sizes)]
    for layer in range(num_layers):
        cells = (f"{losses[layer, size]:>10.4f}" if (layer, size) in losses else " " * 10 for size in sizes)
        rows.append(f"{layer:>7} " + " ".join(cells) + ("  removed" if layer in removed else ""))
    return [row.rstrip() for row in rows]


def plot_windows(inheritance: Inheritance, path: Path) -> None:
    """Plots the loss over the position of the skipped window, one line per window size, as PNG."""

    def draw(figure: "Figure") -> None:
        from matplotlib.ticker import MaxNLocator

        panel = figure.subplots()
        for size in sorted({window.size for window in inheritance.windows}):
            windows = [window for window in inheritance.windows if window.size == size]
            middles = [np.mean(window.layers) for window in windows]
            label = f"{size} layer{'s' if size > 1 else ''}"
            panel.plot(middles, [window.loss for window in windows], "o-", markersize=4, linewidth=1.2, label=label)
        panel.axhline(inheritance.full_loss, color="0.4", linewidth=1, linestyle="--", label="none")
        last = max((layer for window in inheritance.windows for layer in window.layers), default=0)
        for layer in set(range(last + 1)) - set(inheritance.kept.layers):
            panel.axvspan(layer - 0.5, layer + 0.5, color="0.9", linewidth=0)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_xlabel("middle of the window (layer, counted from 0; grey: removed)")
        panel.set_ylabel("loss (nats per token)")
        panel.set_title("loss when consecutive layers are skipped", fontsize=10)
        panel.legend(title="skipped", frameon=False, fontsize=8)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)

    write_optional_figure(path, (6.4, 3.8), draw)
