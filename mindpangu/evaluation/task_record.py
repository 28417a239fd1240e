"""The result of a task, `evaluation/<task>.json` in a run folder, and the printed table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from mindpangu.evaluation.choices import Prediction
from mindpangu.evaluation.statistics import mean_with_interval
from mindpangu.untrusted import Range

FORMAT_VERSION = 1

Fraction = Annotated[float, Range(0, 1)]
Count = Annotated[int, Range(0)]


@dataclass(frozen=True)
class SavedTask:
    """The content of the file without its inputs.

    Attributes:
        step: step of the checkpoint.
        title, category, language, domain: of the task, and the domain that answered it.
        questions: number of questions, including those without a known answer.
        without_answer: number of questions whose answer the publisher keeps back. They do not count in the score.
        accuracy, low, high: share of right answers, the mean over subjects, and its 95 % interval.
        chance: expected accuracy of random answers.
        cut: share of questions that did not fit the window and lost their beginning.
        ties: number of questions whose two most likely choices are equal within rounding.
        subjects: accuracy of each subject; empty if the task has none.
        predictions: the fields of `Prediction` for each question, in order.
    """

    step: Count
    title: str
    category: str
    language: str
    domain: str
    questions: Count
    without_answer: Count
    accuracy: Fraction
    low: Fraction
    high: Fraction
    chance: Fraction
    cut: Fraction
    ties: Count
    subjects: dict[str, Fraction]
    predictions: list[dict[str, Any]]


def task_result(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Computes the numbers of a `SavedTask` from the predictions, at least one of which has a known answer."""
    known = [each for each in predictions if each.answer is not None]
    right = [float(each.choice == each.answer) for each in known]
    score = mean_with_interval(right, [each.subject for each in known])
    subjects: dict[str, list[float]] = {}
    for each, is_right in zip(known, right, strict=True):
        subjects.setdefault(each.subject, []).append(is_right)
    chances = [1 / len(each.scores) for each in known]
    return {
        "questions": len(predictions),
        "without_answer": len(predictions) - len(known),
        "accuracy": score.value,
        "low": score.low,
        "high": score.high,
        "chance": sum(chances) / len(chances),
        "cut": sum(each.is_cut for each in predictions) / len(predictions),
        "ties": sum(each.is_tie for each in predictions),
        "subjects": {name: sum(each) / len(each) for name, each in subjects.items() if name},
        "predictions": [asdict(each) for each in predictions],
    }


def format_tasks(results: Mapping[str, SavedTask]) -> str:
    """Formats results as a table with one row per task.

    Args:
        results: name of the task → result.
    """
    lines = [
        f"{'task':<14} {'category':<22} {'questions':>9} {'accuracy':>9} {'95 % interval':>17} {'chance':>7} {'cut':>6}"
    ]
    for name, each in results.items():
        interval = f"{100 * each.low:.1f} to {100 * each.high:.1f} %"
        lines.append(
            f"{name:<14} {each.category:<22} {each.questions:>9,} {100 * each.accuracy:>7.1f} % {interval:>17} "
            f"{100 * each.chance:>5.1f} % {100 * each.cut:>4.0f} %"
        )
    return "\n".join(lines)
