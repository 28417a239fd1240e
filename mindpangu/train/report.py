"""Writes a run's report.md and loss.png from the files in its folder; works at any time."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindpangu.config.run_folder import RunFolder
from mindpangu.files import read_json_object, write_text_atomically
from mindpangu.train.metrics import read_metrics


def write_report(run: RunFolder) -> None:
    """Writes the report and the plot from the metrics, evaluation, and samples that exist."""
    records = read_metrics(run.metrics)
    if records:
        plot_loss(records, run.loss_plot)
    evaluation = read_json_object(run.evaluation)
    samples = read_json_object(run.samples)
    parts = [f"# {run.root.name}", *_training(records), *_evaluation(evaluation), *_samples(samples)]
    write_text_atomically(run.report, "\n\n".join(parts) + "\n")


def plot_loss(records: list[dict[str, Any]], path: Path) -> None:
    """Plots the training loss of every step by domain, and the gradient norm below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (loss_axes, norm_axes) = pyplot.subplots(
        2, 1, figsize=(8, 6), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    taken = [record for record in records if record["skipped"] is None]
    domains = sorted({name for record in records for name in record["domains"]})
    for name in domains:
        points = [
            (record["step"], record["domains"][name]) for record in taken if record["domains"].get(name) is not None
        ]
        steps, losses = zip(*points, strict=True) if points else ((), ())
        line = loss_axes.plot(steps, losses, ".", markersize=3, alpha=0.4)[0]
        loss_axes.plot(steps, _smooth(losses), color=line.get_color(), label=name)
    loss_axes.set_ylabel("training loss (nats per token)")
    loss_axes.set_title(f"{path.parent.name}: loss by domain")
    loss_axes.legend(frameon=False)
    norm_axes.plot([record["step"] for record in taken], [record["global_norm"] for record in taken], color="0.4", lw=1)
    norm_axes.set_ylabel("gradient norm")
    norm_axes.set_yscale("log")
    norm_axes.set_xlabel("step")
    for axes in (loss_axes, norm_axes):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _smooth(values: Sequence[float]) -> np.ndarray:
    """Returns the exponential moving average over about five points, without start-up bias."""
    total = 0.0
    weight = 0.0
    smoothed = []
    for value in values:
        total = 0.8 * total + value
        weight = 0.8 * weight + 1
        smoothed.append(total / weight)
    return np.array(smoothed)


def _training(records: list[dict[str, Any]]) -> list[str]:
    taken = [record for record in records if record["skipped"] is None]
    if not taken:
        return []
    steady = taken[2:] or taken
    median = {key: float(np.median(_numbers(steady, key))) for key in ("per_step_time", "tokens_per_s")}
    skipped = sum(record["skipped"] is not None for record in records)
    rows = [
        ("steps", f"{records[-1]['step']:,}"),
        ("last loss", f"{taken[-1]['loss']:.4f}"),
        ("median step", f"{1000 * median['per_step_time']:.0f} ms"),
        ("median tokens/s", f"{median['tokens_per_s']:,.0f}"),
        ("first step, compilation included", f"{_numbers(records, 'per_step_time')[0]:.1f} s"),
        ("peak memory", f"{max(_numbers(records, 'peak_memory')):.2f} GiB"),
        ("expert imbalance (max/mean)", f"{np.mean(_numbers(steady, 'imbalance')):.2f}"),
        ("skipped steps", str(skipped)),
    ]
    return ["## Training", "![loss](loss.png)", _table(("", "value"), rows)]


def _numbers(records: Sequence[dict[str, Any]], key: str) -> list[float]:
    """Returns the values of a field that are finite, or NaN alone if none is."""
    return [record[key] for record in records if record[key] is not None] or [math.nan]


def _evaluation(evaluation: dict[str, Any]) -> list[str]:
    if not evaluation.get("domains"):
        return []
    rows = [
        (
            result["domain"],
            f"{result['tokens']:,}",
            f"{result['perplexity']:.1f}",
            f"{result['unigram_perplexity']:.1f}",
            f"{result['ratio']:.3f}",
            ", ".join(f"{name} {value:.0f}" for name, value in result["perplexity_as"].items()) or "–",
        )
        for result in evaluation["domains"]
    ]
    head = ("domain", "tokens", "perplexity", "unigram", "ratio", "routed as another domain")
    return [f"## Held-out text (step {evaluation['step']})", _table(head, rows)]


def _samples(samples: dict[str, Any]) -> list[str]:
    if not samples.get("samples"):
        return []
    parts = ["## Continuations"]
    for sample in samples["samples"]:
        parts.append(f"**{sample['domain']}**\n\n```text\n{sample['prompt']}⟶{sample['continuation']}\n```")
    return parts


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
