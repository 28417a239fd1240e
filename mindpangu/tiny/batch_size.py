"""Batch size and learning rate: the rule of the tiny-model paper, and a sweep that finds its exponent."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mindpangu.config import Config
from mindpangu.errors import ConfigError, TrainingError
from mindpangu.files import write_json
from mindpangu.tiny.trials.pool import require_processes, run_trials
from mindpangu.tiny.trials.trial import Trials, require_same, what_decides

EXPONENT = 0.5
SWEEP, RESULTS, PLOT = "sweep.json", "results.json", "results.png"

Losses = Mapping[tuple[int, float], float]
"""(samples a step, learning rate) → held-out bits per byte."""


def scaled_learning_rate(batch: float, base_batch: float, base_rate: float, exponent: float = EXPONENT) -> float:
    """The learning rate that goes with a batch, if `base_rate` goes with `base_batch`:

    lr = (batch / base_batch)^r · base_rate, with r = 0.5 (arXiv 2402.02791, which advises batches below 4 M tokens).

    Args:
        batch, base_batch: tokens, or samples of one length: only their ratio counts.

    Raises:
        ConfigError: a batch or rate that is not above 0, or an exponent that is not finite, or gives no such rate.
    """
    for name, value in (("batch", batch), ("base batch", base_batch), ("base rate", base_rate)):
        if not 0 < value < math.inf:
            raise ConfigError(f"the {name} is {value}; allowed: > 0")
    if not math.isfinite(exponent):
        raise ConfigError(f"the exponent is {exponent}; allowed: a finite number")
    try:
        rate = (batch / base_batch) ** exponent * base_rate
    except OverflowError:
        rate = math.inf
    if not 0 < rate < math.inf:
        raise ConfigError(f"the exponent is {exponent}, which makes the rate {rate:g}; give one nearer to {EXPONENT}")
    return rate


@dataclass(frozen=True)
class Fit:
    """log rate = r · log batch + c through the best rate of each batch.

    Attributes:
        exponent: r. resolution: how far r may be off because rates were tried in steps.
        best: batch → its best rate, of those that were tried.
        at_edge: batches whose best rate is the lowest or the highest that was tried: a better one may lie beyond.
    """

    exponent: float
    resolution: float
    best: dict[int, float]
    at_edge: tuple[int, ...]

    @staticmethod
    def from_losses(losses: Losses) -> "Fit":
        """Least squares: with x = log batch, y = log best rate, r = Σ (x_i − x̄) y_i / Σ (x_i − x̄)².

        The true optimum is taken to be nearer to the best rate than to the next one, so y_i may be off by half a step
        h_i on either side, and r by Σ |x_i − x̄| h_i / Σ (x_i − x̄)² at most.

        Raises:
            ConfigError: fewer than two batches or rates.
        """
        batches, rates = sorted({batch for batch, _ in losses}), sorted({rate for _, rate in losses})
        _require_grid(batches, rates)
        best = {
            batch: min((rate for rate in rates if (batch, rate) in losses), key=lambda rate: losses[batch, rate])
            for batch in batches
        }
        x_N, y_N = np.log(batches), np.log([best[batch] for batch in batches])
        away_N = x_N - x_N.mean()
        gaps = np.diff(np.log(rates))
        place_N = np.array([rates.index(best[batch]) for batch in batches])
        half_N = 0.5 * np.maximum(gaps[np.minimum(place_N, len(gaps) - 1)], gaps[np.maximum(place_N - 1, 0)])
        return Fit(
            exponent=float(away_N @ y_N / (away_N @ away_N)),
            resolution=float(np.abs(away_N) @ half_N / (away_N @ away_N)),
            best=best,
            at_edge=tuple(batch for batch in batches if best[batch] in (rates[0], rates[-1])),
        )

    def __str__(self) -> str:
        exponent = round(self.exponent, 2) + 0.0  # not −0.00
        text = f"r = {exponent:.2f} ± {self.resolution:.2f} (the steps between rates); the paper's: {EXPONENT}"
        if self.at_edge:
            names = ", ".join(map(str, self.at_edge))
            text += f"\nthe best rate of batch {names} is at the edge of --rates: a better one may lie beyond"
        return text


def trial_config(config: Config, batch: int, rate: float, tokens: int) -> Config:
    """The configuration with this many samples a step and this peak learning rate, for this many tokens.

    Warm-up and decay take the same share of the tokens as before, and the last rate stays the same share of the peak.
    Micro-batches are the largest, up to the size they had, that divide the batch as data.domains_per_step and
    data.domain_groups need it.

    Raises:
        ConfigError: fewer tokens than a step has, or a batch that cannot be had.
    """
    training, schedule, data = config.training, config.lr_scheduler, config.data
    steps = tokens // (batch * config.model.seq_length)
    if steps < 1:
        raise ConfigError(
            f"--tokens {tokens:,} is less than a step of {batch} samples of {config.model.seq_length} tokens; give more"
        )
    domains = data.domains_per_step if data.schedule == "rotating" else 1
    fitting = [
        size
        for size in range(domains, training.local_batch_size + 1, domains)
        if batch % (size * data.domain_groups) == 0
    ]
    if not fitting:
        raise ConfigError(
            f"--batches has {batch}, which is no multiple of data.domains_per_step {domains} × data.domain_groups "
            f"{data.domain_groups}"
        )
    share = steps / training.steps
    warmup = min(round(schedule.warmup_steps * share), steps - 1)
    return replace(
        config,
        training=replace(training, steps=steps, local_batch_size=fitting[-1], global_batch_size=batch),
        lr_scheduler=replace(
            schedule,
            learning_rate=rate,
            lr_end=schedule.lr_end / schedule.learning_rate * rate,
            warmup_steps=warmup,
            decay_steps=max(round(schedule.decay_steps * share), warmup + 1),
        ),
    )


def sweep(
    config: Config,
    batches: Sequence[int],
    rates: Sequence[float],
    tokens: int,
    folder: Path,
    processes: int = 1,
    keep_checkpoints: bool = False,
    log: Callable[[str], None] = print,
) -> bool:
    """Trains every pair of a batch and a rate on equally many tokens, and fits r; False if a pair failed.

    A folder that holds a part of this sweep is gone on with.

    Raises:
        ConfigError: a grid that means nothing, or a folder of another sweep.
        TrainingError: no pair of a batch succeeded. MindPanguError: as `Trials`.
    """
    batches, rates = sorted(set(batches)), sorted(set(rates))
    _require_grid(batches, rates)
    require_processes(processes)
    grid = {(batch, rate): trial_config(config, batch, rate, tokens) for batch in batches for rate in rates}
    settings = {"batches": batches, "rates": rates, "tokens": tokens, "config": what_decides(config)}
    file = require_same(folder, SWEEP, settings)
    trials = Trials(folder, config, keep_checkpoints, log)  # what can be wrong with the options is found before
    file.write({})
    trial_of = {pair: trials.add(f"batch{pair[0]:05d}_rate{pair[1]}", each) for pair, each in grid.items()}
    failed = run_trials(list(trial_of.values()), processes)
    for name, reason in failed.items():
        log(f"batch-size: {name} failed: {reason}")
    losses = {pair: trial.result()["bits_per_byte"] for pair, trial in trial_of.items() if trial.name not in failed}
    lost = sorted(set(batches).difference(batch for batch, _ in losses))
    if lost:
        raise TrainingError(f"no learning rate worked for batch {', '.join(map(str, lost))}; each is named above")
    fit = Fit.from_losses(losses)
    write_json(folder / RESULTS, _result(config, losses, fit, tokens, failed))
    plot_losses(losses, fit, folder / PLOT)
    log(format_losses(losses, fit))
    log(str(fit))
    log(f"batch-size: {len(losses)} trainings of {tokens:,} tokens → {folder} ({RESULTS}, {PLOT})")
    return not failed


def _require_grid(batches: Sequence[int], rates: Sequence[float]) -> None:
    if len(batches) < 2 or len(rates) < 2:
        raise ConfigError("the exponent takes at least two batches and two rates; give more --batches and --rates")


def _result(config: Config, losses: Losses, fit: Fit, tokens: int, failed: Mapping[str, str]) -> dict[str, Any]:
    return {
        "tokens": tokens,
        "grid": [
            {"batch_samples": batch, "batch_tokens": batch * config.model.seq_length, "learning_rate": rate,
             "bits_per_byte": loss}
            for (batch, rate), loss in losses.items()
        ],
        "best": [{"batch_samples": batch, "learning_rate": rate} for batch, rate in fit.best.items()],
        "exponent": fit.exponent,
        "resolution": fit.resolution,
        "best_at_edge": list(fit.at_edge),
        "paper": EXPONENT,
        "failed": dict(failed),
    }  # fmt: skip


def format_losses(losses: Losses, fit: Fit) -> str:
    """A row for each batch, a column for each rate, and what the paper's rule makes of the first batch's best rate."""
    rates = sorted({rate for _, rate in losses})
    first = min(fit.best)
    lines = [f"{'batch':>8}" + "".join(f" {f'lr {rate:g}':>11}" for rate in rates) + f" {'best':>10} {'r = 0.5':>10}"]
    for batch, best in fit.best.items():
        cells = "".join(
            f" {losses[batch, rate]:>10.4f}{'*' if rate == best else ' '}" if (batch, rate) in losses
            else f" {'failed':>10} "
            for rate in rates
        )  # fmt: skip
        rule = scaled_learning_rate(batch, first, fit.best[first])
        lines.append(f"{batch:>8}{cells} {best:>10g} {rule:>10.3g}")
    lines.append("samples a step; held-out bits per byte, mean over domains; * the best of a batch")
    return "\n".join(lines)


def plot_losses(losses: Losses, fit: Fit, path: Path) -> None:
    """Writes a PNG: loss over learning rate for each batch, and the best rate over the batch beside the rule."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    batches, best = list(fit.best), list(fit.best.values())
    for batch in batches:
        pairs = sorted((rate, loss) for (of, rate), loss in losses.items() if of == batch)
        left.plot(*zip(*pairs, strict=True), "o-", markersize=4, linewidth=1.2, label=f"{batch} samples")
    left.set(xscale="log", xlabel="peak learning rate", ylabel="held-out bits per byte")
    right.plot(batches, best, "o", label="best rate tried")
    centre = math.exp(np.mean(np.log(batches))), math.exp(np.mean(np.log(best)))
    for exponent, style in ((fit.exponent, "-"), (EXPONENT, ":")):
        name = f"r = {exponent:.2f}" + (" (paper)" if style == ":" else " (fit)")
        rates = [scaled_learning_rate(batch, *centre, exponent) for batch in batches]
        right.plot(batches, rates, style, color="0.4", label=name)
    right.set(xscale="log", yscale="log", xlabel="samples a step", ylabel="peak learning rate")
    for panel in (left, right):
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", dpi=120)
