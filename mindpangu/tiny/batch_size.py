"""Batch size and learning rate: the scaling rule of the tiny-model paper, and a sweep that estimates its exponent."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mindpangu.config import Config
from mindpangu.errors import ConfigError, TrainingError
from mindpangu.figures import write_optional_figure
from mindpangu.files import write_json
from mindpangu.tiny.trials.pool import require_processes, run_trials
from mindpangu.tiny.trials.trial import RESULTS, Trials, require_same_search, result_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPONENT = 0.5
SWEEP = "sweep.json"
PLOT = "results.png"

Losses = Mapping[tuple[int, float], float]
"""(samples per step, learning rate) → held-out bits per byte."""


def scaled_learning_rate(batch: float, base_batch: float, base_rate: float, exponent: float = EXPONENT) -> float:
    """Scales a learning rate that suits `base_batch` to another batch size.

    lr = (batch / base_batch)^r · base_rate, with r = 0.5 (arXiv 2402.02791, which recommends batches below 4 M tokens).

    Args:
        batch, base_batch: sizes in tokens, or in samples of equal length; only their ratio matters.

    Raises:
        ConfigError: a batch or rate is not above 0, the exponent is not finite, or the resulting rate is 0 or infinite.
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
    """The line log rate = r · log batch + c, fitted to the best rate of each batch.

    Attributes:
        exponent: r.
        resolution: largest error of r that the spacing of the tried rates can cause.
        best: batch → best of the tried rates.
        at_edge: batches whose best rate is the lowest or highest one tried; a better one may lie beyond.
    """

    exponent: float
    resolution: float
    best: dict[int, float]
    at_edge: tuple[int, ...]

    @staticmethod
    def from_losses(losses: Losses) -> "Fit":
        """Fits by least squares: with x = log batch and y = log best rate, r = Σ (x_i − x̄) y_i / Σ (x_i − x̄)².

        Assumes that the true optimum is nearer to the best rate than to the next one. Then y_i is off by at most half a
        step h_i, and r by at most Σ |x_i − x̄| h_i / Σ (x_i − x̄)².

        Raises:
            ConfigError: there are fewer than two batches or rates.
        """
        batches = sorted({batch for batch, _ in losses})
        rates = sorted({rate for _, rate in losses})
        _require_grid(batches, rates)
        best = {
            batch: min((rate for rate in rates if (batch, rate) in losses), key=lambda rate: losses[batch, rate])
            for batch in batches
        }
        x_J = np.log(batches)
        y_J = np.log([best[batch] for batch in batches])
        centered_J = x_J - x_J.mean()
        steps = np.diff(np.log(rates))
        rate_index_J = np.array([rates.index(best[batch]) for batch in batches])
        step_above_J = steps[np.minimum(rate_index_J, len(steps) - 1)]
        step_below_J = steps[np.maximum(rate_index_J - 1, 0)]
        half_step_J = 0.5 * np.maximum(step_above_J, step_below_J)
        return Fit(
            exponent=float(centered_J @ y_J / (centered_J @ centered_J)),
            resolution=float(np.abs(centered_J) @ half_step_J / (centered_J @ centered_J)),
            best=best,
            at_edge=tuple(batch for batch in batches if best[batch] in (rates[0], rates[-1])),
        )

    def __str__(self) -> str:
        exponent = round(self.exponent, 2) + 0.0  # prints 0.00 instead of −0.00
        text = f"r = {exponent:.2f} ± {self.resolution:.2f} (the steps between rates); the paper's: {EXPONENT}"
        if self.at_edge:
            names = ", ".join(map(str, self.at_edge))
            text += f"\nthe best rate of batch {names} is at the edge of --rates: a better one may lie beyond"
        return text


def trial_config(config: Config, batch: int, rate: float, tokens: int) -> Config:
    """Returns the configuration with another batch size and peak learning rate, trained on `tokens` tokens.

    Warm-up and decay keep their shares of the steps, and the final rate keeps its ratio to the peak. The micro-batch is
    the largest size, up to the configured one, that divides the batch and satisfies data.domains_per_step and
    data.domain_groups.

    Args:
        batch: samples per step.
        rate: peak learning rate.

    Raises:
        ConfigError: there are not enough tokens for one step, or no micro-batch size divides the batch.
    """
    training = config.training
    schedule = config.lr_scheduler
    data = config.data
    steps = tokens // (batch * config.model.seq_length)
    if steps < 1:
        raise ConfigError(
            f"--tokens {tokens:,} is less than a step of {batch} samples of {config.model.seq_length} tokens; give more"
        )
    domains = data.domains_per_step if data.schedule == "rotating" else 1
    micro_batches = [
        size
        for size in range(domains, training.local_batch_size + 1, domains)
        if batch % (size * data.domain_groups) == 0
    ]
    if not micro_batches:
        raise ConfigError(
            f"--batches has {batch}, which is not a multiple of data.domains_per_step {domains} × data.domain_groups "
            f"{data.domain_groups}"
        )
    share = steps / training.steps
    warmup = min(round(schedule.warmup_steps * share), steps - 1)
    return replace(
        config,
        training=replace(training, steps=steps, local_batch_size=micro_batches[-1], global_batch_size=batch),
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
    """Trains every pair of batch and rate on the same number of tokens, and fits r.

    Continues an unfinished sweep in the same folder.

    Returns:
        False if a training failed.

    Raises:
        ConfigError: there are fewer than two batches or rates, or the folder holds another sweep.
        TrainingError: every training of some batch failed.
        MindPanguError: see `Trials`.
    """
    batches = sorted(set(batches))
    rates = sorted(set(rates))
    _require_grid(batches, rates)
    require_processes(processes)
    grid = {(batch, rate): trial_config(config, batch, rate, tokens) for batch in batches for rate in rates}
    settings = {"batches": batches, "rates": rates, "tokens": tokens, "config": result_settings(config)}
    sweep_file = require_same_search(folder, SWEEP, settings)
    # Trials validates the options, so the sweep file is written only afterwards
    trials = Trials(folder, config, keep_checkpoints, log)
    sweep_file.write({})
    trial_of = {
        (batch, rate): trials.add(f"batch{batch:05d}_rate{rate}", grid_config)
        for (batch, rate), grid_config in grid.items()
    }
    failed = run_trials(list(trial_of.values()), processes)
    for name, reason in failed.items():
        log(f"batch-size: {name} failed: {reason}")
    losses = {pair: trial.result().bits_per_byte for pair, trial in trial_of.items() if trial.name not in failed}
    failed_batches = sorted(set(batches).difference(batch for batch, _ in losses))
    if failed_batches:
        names = ", ".join(map(str, failed_batches))
        raise TrainingError(f"no learning rate worked for batch {names}; the failures are listed above")
    fit = Fit.from_losses(losses)
    write_json(folder / RESULTS, _result(config, losses, fit, tokens, failed))
    plot_losses(losses, fit, folder / PLOT)
    log(format_losses(losses, fit))
    log(str(fit))
    log(f"batch-size: {len(losses)} trainings of {tokens:,} tokens → {folder} ({RESULTS}, {PLOT})")
    return not failed


def _require_grid(batches: Sequence[int], rates: Sequence[float]) -> None:
    if len(batches) < 2 or len(rates) < 2:
        raise ConfigError(
            "fitting the exponent needs at least two batches and two rates; give more --batches and --rates"
        )


def _result(config: Config, losses: Losses, fit: Fit, tokens: int, failed: Mapping[str, str]) -> dict[str, Any]:
    return {
        "tokens": tokens,
        "grid": [
            {
                "batch_samples": batch,
                "batch_tokens": batch * config.model.seq_length,
                "learning_rate": rate,
                "bits_per_byte": loss,
            }
            for (batch, rate), loss in losses.items()
        ],
        "best": [{"batch_samples": batch, "learning_rate": rate} for batch, rate in fit.best.items()],
        "exponent": fit.exponent,
        "resolution": fit.resolution,
        "best_at_edge": list(fit.at_edge),
        "paper": EXPONENT,
        "failed": dict(failed),
    }


def format_losses(losses: Losses, fit: Fit) -> str:
    """Formats a table with a row per batch and a column per rate.

    The last column scales the best rate of the smallest batch with the paper's rule.
    """
    rates = sorted({rate for _, rate in losses})
    smallest = min(fit.best)
    lines = [f"{'batch':>8}" + "".join(f" {f'lr {rate:g}':>11}" for rate in rates) + f" {'best':>10} {'r = 0.5':>10}"]
    for batch, best in fit.best.items():
        cells = []
        for rate in rates:
            loss = f"{losses[batch, rate]:.4f}" if (batch, rate) in losses else "failed"
            mark = "*" if rate == best else " "
            cells.append(f" {loss:>10}{mark}")
        scaled = scaled_learning_rate(batch, smallest, fit.best[smallest])
        lines.append(f"{batch:>8}{''.join(cells)} {best:>10g} {scaled:>10.3g}")
    lines.append("batch: samples per step; held-out bits per byte, mean over domains; * best rate of the batch")
    return "\n".join(lines)


def plot_losses(losses: Losses, fit: Fit, path: Path) -> None:
    """Plots the loss over the learning rate for each batch, and the best rate over the batch with the rule, as PNG."""

    def draw(figure: "Figure") -> None:
        left, right = figure.subplots(1, 2)
        batches = list(fit.best)
        best = list(fit.best.values())
        for batch in batches:
            pairs = sorted((rate, loss) for (other, rate), loss in losses.items() if other == batch)
            left.plot(*zip(*pairs, strict=True), "o-", markersize=4, linewidth=1.2, label=f"{batch} samples")
        left.set(xscale="log", xlabel="peak learning rate", ylabel="held-out bits per byte")
        right.plot(batches, best, "o", label="best rate tried")
        mean_batch = math.exp(np.mean(np.log(batches)))
        mean_rate = math.exp(np.mean(np.log(best)))
        for exponent, style in ((fit.exponent, "-"), (EXPONENT, ":")):
            name = f"r = {exponent:.2f}" + (" (paper)" if style == ":" else " (fit)")
            rates = [scaled_learning_rate(batch, mean_batch, mean_rate, exponent) for batch in batches]
            right.plot(batches, rates, style, color="0.4", label=name)
        right.set(xscale="log", yscale="log", xlabel="samples per step", ylabel="peak learning rate")
        for panel in (left, right):
            panel.grid(alpha=0.3)
            panel.legend(fontsize=8)
            panel.spines[["top", "right"]].set_visible(False)

    write_optional_figure(path, (9, 3.8), draw)
