"""COPA (SuperGLUE, arXiv 1905.00537): the more plausible cause or effect."""

from collections.abc import Iterator
from pathlib import Path

from mindpangu.evaluation.forms import superglue
from mindpangu.evaluation.task import Question, Task
from mindpangu.evaluation.task_files import json_lines, text_in


def questions(path: Path) -> Iterator[Question]:
    for record in json_lines(path):
        connective = {"cause": "because", "effect": "so"}[record["question"]]
        choices = tuple(_continued(text_in(record, field)) for field in ("choice1", "choice2"))
        yield Question(f"{text_in(record, 'premise').rstrip('.')} {connective}", choices, record.get("label"))


def _continued(sentence: str) -> str:
    return f" {sentence[:1].lower()}{sentence[1:]}"


TASK = Task(
    title="COPA",
    category="commonsense",
    language="en",
    published=superglue.PUBLISHED,
    layouts=superglue.layouts("COPA"),
    questions=questions,
    normalization="tokens",
)
