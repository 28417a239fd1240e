"""The search: a sample of points, a short training of each, and what comes of it.

<folder>/points.json     the sample, and the options that it was drawn with
<folder>/depth…/         a run folder a point (`tiny.trials`)
<folder>/results.json    measures and ranks of every point, correlations
<folder>/results.png     loss over depth, width and expansion
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindpangu.config import Config
from mindpangu.errors import TrainingError
from mindpangu.files import read_json_object, write_json
from mindpangu.model.parameter_count import in_words
from mindpangu.stage import ResultFile
from mindpangu.tiny.architecture.points import Point, Space, enumerate_points, sample_points
from mindpangu.tiny.architecture.report import Correlations, Outcome, format_outcomes, plot_outcomes, rank
from mindpangu.tiny.trials.pool import require_processes, run_trials
from mindpangu.tiny.trials.trial import Trials, require_same, what_decides

POINTS, RESULTS, PLOT = "points.json", "results.json", "results.png"

Log = Callable[[str], None]


def draw_points(config: Config, space: Space, number: int, seed: int, log: Log = print) -> list[Point]:
    """A new sample, which is kept nowhere.

    Raises:
        ConfigError: a space without points or with too few.
    """
    points = enumerate_points(config, space)
    sample = sample_points(points, number, seed)
    log(
        f"architecture: {len(sample)} of {len(points)} points of {in_words(space.budget)} parameters ± "
        f"{space.tolerance:.1%}, depth {space.depth}, width {space.width} in steps of {space.head_size}, expansion "
        f"{space.expansion}"
    )
    return sample


@dataclass(frozen=True)
class Sample:
    """The points of a search, and the file that keeps them."""

    points: list[Point]
    file: ResultFile

    def keep(self) -> None:
        """Writes the file, if it is not there."""
        if not self.file.is_current():
            self.file.write({"points": [point.to_dict() for point in self.points]})


def choose_points(config: Config, space: Space, number: int, seed: int, folder: Path, log: Log = print) -> Sample:
    """The sample of a folder: what its file holds, or else a new one.

    Raises:
        ConfigError: as `draw_points`, or a folder of another search.
    """
    points = draw_points(config, space, number, seed, log)
    decides = what_decides(config)
    for key in ("num_layers", "hidden_size", "ffn_hidden_size", "num_heads"):  # each point has its own
        del decides["model"][key]
    settings = {"space": space.to_dict(), "points": number, "seed": seed, "config": decides}
    file = require_same(folder, POINTS, settings)
    if file.is_current():
        points = [_read_point(each) for each in read_json_object(file.path)["points"]]
    return Sample(points, file)


def format_points(points: list[Point]) -> str:
    """A row for each point."""
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
    """Trains and measures the points that are not done, ranks all, and writes the results; False if a point failed.

    The sample is kept when the corpus is prepared: what can be wrong with the options is found before, so that the same
    folder takes better ones.

    Raises:
        TrainingError: every point failed. MindPanguError: as `Trials`.
    """
    require_processes(processes)
    trials = Trials(folder, config, keep_checkpoints, log)
    sample.keep()
    trial_of = {point: trials.add(point.name, point.apply(config), decode=True) for point in sample.points}
    failed = run_trials(list(trial_of.values()), processes)
    for name, reason in failed.items():
        log(f"architecture: {name} failed: {reason}")
    outcomes = [
        Outcome.from_result(point, trial.result()) for point, trial in trial_of.items() if trial.name not in failed
    ]
    if not outcomes:
        raise TrainingError("every point failed, so there is nothing to rank; each is named above")
    outcomes = rank(outcomes)
    correlations = Correlations.among(outcomes)
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


def _read_point(kept: dict[str, Any]) -> Point:
    return Point(**{name: value for name, value in kept.items() if name != "expansion"})
