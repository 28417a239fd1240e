"""Writes a run's report.md and loss.png from the files in its folder; works at any time."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mindpangu.config.run_folder import RunFolder
from mindpangu.display import printable, printable_line
from mindpangu.errors import StageError
from mindpangu.figures import write_optional_figure
from mindpangu.files import write_text_atomically
from mindpangu.stage import ResultFile
from mindpangu.train.metrics import read_metrics
from mindpangu.untrusted import DomainName, Measured

_Record = TypeVar("_Record")


@dataclass(frozen=True)
class _EvaluatedDomain:
    domain: DomainName
    tokens: int
    loss: Measured
    unigram_loss: Measured
    loss_as: dict[DomainName, Measured]
    perplexity: Measured
    unigram_perplexity: Measured
    ratio: Measured
    perplexity_as: dict[DomainName, Measured]


@dataclass(frozen=True)
class SavedEvaluation:
    """The content of evaluation.json, without its inputs."""

    step: int
    domains: list[_EvaluatedDomain]


@dataclass(frozen=True)
class _Sample:
    domain: DomainName
    prompt: str
    continuation: str


@dataclass(frozen=True)
class SavedSamples:
    """The content of samples.json, without its inputs."""

    step: int
    samples: list[_Sample]


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(run: RunFolder) -> None:
    """Writes the report and the plot from the metrics, evaluation, and samples that exist."""
    records = read_metrics(run.metrics)
    if records:
        plot_loss(records, run.loss_plot)
    loss_plot = ["![loss](loss.png)"] if run.loss_plot.exists() else []
    evaluation = _read(run.evaluation, SavedEvaluation)
    samples = _read(run.samples, SavedSamples)
    title = f"# {printable_line(run.root.name)}"
    parts = [title, *_training(records, loss_plot), *_evaluation(evaluation), *_samples(samples)]
    write_text_atomically(run.report, "\n\n".join(parts) + "\n")


def plot_loss(records: list[dict[str, Any]], path: Path) -> None:
    """Plots the training loss of every step by domain, and the gradient norm below."""

    def draw(figure: "Figure") -> None:
        loss_axes, norm_axes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        taken = [record for record in records if record["skipped"] is None]
        domains = sorted({name for record in records for name in record["domains"]})
        lines = []
        for name in domains:
            points = [
                (record["step"], record["domains"][name]) for record in taken if record["domains"].get(name) is not None
            ]
            steps, losses = zip(*points, strict=True) if points else ((), ())
            dots = loss_axes.plot(steps, losses, ".", markersize=3, alpha=0.4)[0]
            lines += loss_axes.plot(steps, _smooth(losses), color=dots.get_color())
        legend = loss_axes.legend(lines, [str(index) for index in range(len(lines))], frameon=False)
        for text, name in zip(legend.get_texts(), domains, strict=True):
            text.set_text(name)  # as the label of a line, a name that begins with _ would be left out
        loss_axes.set_ylabel("training loss (nats per token)")
        loss_axes.set_title(f"{path.parent.name}: loss by domain")
        norms = [record["global_norm"] for record in taken]
        norm_axes.plot([record["step"] for record in taken], norms, color="0.4", lw=1)
        norm_axes.set_ylabel("gradient norm")
        norm_axes.set_yscale("log")
        norm_axes.set_xlabel("step")
        for axes in (loss_axes, norm_axes):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)

    write_optional_figure(path, (8, 6), draw)


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


def _training(records: list[dict[str, Any]], loss_plot: list[str]) -> list[str]:
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
    return ["## Training", *loss_plot, _table(("", "value"), rows)]


def _numbers(records: Sequence[dict[str, Any]], key: str) -> list[float]:
    """Returns the finite values of a field, or a single NaN if there are none."""
    return [record[key] for record in records if record[key] is not None] or [math.nan]


def _read(path: Path, record: type[_Record]) -> _Record | None:
    """Reads a result file. Returns None if it is missing or damaged; the report then leaves it out."""
    try:
        return ResultFile(path, {}).read(record)
    except StageError:
        return None


def _evaluation(evaluation: SavedEvaluation | None) -> list[str]:
    if evaluation is None or not evaluation.domains:
        return []
    rows = [
        (
            result.domain,
            f"{result.tokens:,}",
            f"{result.perplexity:.1f}",
            f"{result.unigram_perplexity:.1f}",
            f"{result.ratio:.3f}",
            ", ".join(f"{name} {value:.0f}" for name, value in result.perplexity_as.items()) or "–",
        )
        for result in evaluation.domains
    ]
    head = ("domain", "tokens", "perplexity", "unigram", "ratio", "routed as another domain")
    return [f"## Held-out text (step {evaluation.step})", _table(head, rows)]


def _samples(samples: SavedSamples | None) -> list[str]:
    if samples is None or not samples.samples:
        return []
    parts = ["## Continuations"]
    for sample in samples.samples:
        text = printable(f"{sample.prompt}⟶{sample.continuation}")
        fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])  # longer than any in the text
        parts.append(f"**{sample.domain}**\n\n{fence}text\n{text}\n{fence}")
    return parts


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
