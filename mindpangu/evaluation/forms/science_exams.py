"""The questions of ARC and OpenBookQA, which have the same form: JSON lines with a stem and labelled choices."""

from collections.abc import Iterator
from pathlib import Path

from mindpangu.evaluation.task import Question
from mindpangu.evaluation.task_files import index_of, json_lines, text_in


def science_exam(path: Path) -> Iterator[Question]:
    """Reads the questions. Choices are labelled with letters or with digits."""
    for record in json_lines(path):
        asked = record["question"]
        labels = [text_in(choice, "label") for choice in asked["choices"]]
        choices = tuple(f" {text_in(choice, 'text')}" for choice in asked["choices"])
        answer = index_of(record["answerKey"], labels) if "answerKey" in record else None
        yield Question(f"Question: {text_in(asked, 'stem')}\nAnswer:", choices, answer)
