"""HellaSwag (arXiv 1905.07830): the sentence that goes on from a description of an activity."""

from collections.abc import Iterator
from pathlib import Path

from mindpangu.evaluation.task import Question, Task
from mindpangu.evaluation.task_files import json_lines, text_in


def questions(path: Path) -> Iterator[Question]:
    for record in json_lines(path):
        prompt = f"{text_in(record, 'activity_label')}: {text_in(record, 'ctx')}"
        yield Question(prompt, tuple(f" {ending}" for ending in record["endings"]), record.get("label"))


TASK = Task(
    title="HellaSwag",
    category="commonsense",
    language="en",
    published="https://github.com/rowanz/hellaswag",
    layouts=(("hellaswag/hellaswag_val.jsonl",),),
    questions=questions,
    normalization="characters",
)
