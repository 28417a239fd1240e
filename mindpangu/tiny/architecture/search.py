"""The search: draws a sample of points, trains each one briefly, and ranks them.

<folder>/points.json     the sample and the settings that it was drawn with
<folder>/depth…/         one run folder per point (`tiny.trials`)
<folder>/results.json    measures and ranks of all points, correlations
<folder>/results.png     loss over depth, width and expansion
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mindpangu.config import Config
from mindpangu.errors import TrainingError
from mindpangu.files import write_json
from mindpangu.model.parameter_count import in_words
from mindpangu.stage import ResultFile
from mindpangu.tiny.architecture.points import Point, Space, enumerate_points, sample_points
from mindpangu.tiny.architecture.report import Correlations, Outcome, format_outcomes, plot_outcomes, rank
from mindpangu.tiny.trials.pool import require_processes, run_trials
from mindpangu.tiny.trials.trial import RESULTS, Trials, require_same_search, result_settings
from mindpangu.untrusted import Range

POINTS = "points.json"
PLOT = "results.png"

Log = Callable[[str], None]
_Size = Annotated[int, Range(1, 1 << 40)]


@dataclass(frozen=True)
class _SavedPoint:
    """A point as `Point.to_dict` writes it."""

    depth: _Size
    width: _Size
    ffn_width: _Size
    num_heads: _Size
    parameters: _Size
    expansion: float = 0.0

    def to_point(self) -> Point:
        return Point(self.depth, self.width, self.ffn_width, self.num_heads, self.parameters)


@dataclass(frozen=True)
class SavedPoints:
    """The content of points.json, without its inputs."""

    points: list[_SavedPoint]


def draw_points(config: Config, space: Space, num_points: int, seed: int, log: Log = print) -> list[Point]:
    """Draws a new sample, without saving it.

    Raises:
        ConfigError: the space has no points, or too few.
    """
    points = enumerate_points(config, space)
    sample = sample_points(points, num_points, seed)
    log(
        f"architecture: {len(sample)} of {len(points)} points of {in_words(space.budget)} parameters ± "
        f"{space.tolerance:.1%}, depth {space.depth}, width {space.width} in steps of {space.head_size}, expansion "
        f"{space.expansion}"
    )
    return sample


@dataclass(frozen=True)
class Sample:
    """The points of a search, and the file that they are saved in."""

    points: list[Point]
    file: ResultFile

    def save(self) -> None:
        """Writes the file unless it already holds the sample."""
        if not self.file.is_current():
            self.file.write({"points": [point.to_dict() for point in self.points]})


def load_or_draw_points(
    config: Config, space: Space, num_points: int, seed: int, folder: Path, log: Log = print
) -> Sample:
    """Returns the sample saved in a folder, or draws a new one.

    Raises:
        ConfigError: the space has no points, or too few, or the folder holds another search.
    """
    points = draw_points(config, space, num_points, seed, log)
    config_settings = result_settings(config)
    for key in ("num_layers", "hidden_size", "ffn_hidden_size", "num_heads"):  # set by each point
        del config_settings["model"][key]
    settings = {"space": space.to_dict(), "points": num_points, "seed": seed, "config": config_settings}
    file = require_same_search(folder, POINTS, settings)
    if file.is_current():
        points = [point.to_point() for point in file.read(SavedPoints).points]
    return Sample(points, file)


def format_points(points: list[Point]) -> str:
    """Formats a table with a row per point."""
    rows = [f"{'depth':>6} {'width':>6} {'expansion':>10} {'FFN width':>10} {'heads':>6} {'parameters':>14}"]
    rows += [
        f"{point.depth:>6} {point.width:>6} {point.expansion:>10.2f} {point.ffn_width:>10} {point.num_heads:>6} "
        f"{point.parameters:>14,}"
        for point in sorted(points, key=lambda point: (point.depth, point.width))
    ]
    return "\n".join(rows)


def search(
    config: Config, sample: Sample, folder: Path, processes: int, keep_checkpoints: bool = False, log: Log = print
) -> bool:
    """Trains and measures the points that are not done, ranks all points, and writes the results.

    Returns:
        False if a point failed.

    Raises:
        TrainingError: every point failed.
        MindPanguError: see `Trials`.
    """
    require_processes(processes)
    # Trials validates the options; the sample is saved only afterwards, so a corrected command can use the same folder
    trials = Trials(folder, config, keep_checkpoints, log)
    sample.save()
    trial_of = {point: trials.add(point.name, point.apply(config), decode=True) for point in sample.points}
    failed = run_trials(list(trial_of.values()), processes)
    for name, reason in failed.items():
        log(f"architecture: {name} failed: {reason}")
    outcomes = [
        Outcome.from_result(point, trial.result()) for point, trial in trial_of.items() if trial.name not in failed
    ]
    if not outcomes:
        raise TrainingError("every point failed, so there is nothing to rank; the failures are listed above")
    outcomes = rank(outcomes)
    correlations = Correlations.from_outcomes(outcomes)
    result: dict[str, Any] = {
        "points": [outcome.to_dict() for outcome in outcomes],
        "spearman": correlations.to_dict(),
        "failed": failed,
    }
    write_json(folder / RESULTS, result)
    plot_outcomes(outcomes, folder / PLOT)
    log(format_outcomes(outcomes))
    log(str(correlations))
    log(f"architecture: {len(outcomes)} points → {folder} ({RESULTS}, {PLOT})")
    return not failed
