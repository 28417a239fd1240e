"""PIQA (arXiv 1911.11641): the better of two solutions to an everyday task."""

from collections.abc import Iterator
from pathlib import Path

from mindpangu.evaluation.task import Question, Task
from mindpangu.evaluation.task_files import json_lines, text_in
from mindpangu.user_input import decode_line, text_lines


def questions(path: Path) -> Iterator[Question]:
    """Reads the questions; the answers are in a file of their own, one line each."""
    labels = [int(decode_line(line)) for line in text_lines(path.with_name(f"{path.stem}-labels.lst")) if line.strip()]
    for record, answer in zip(json_lines(path), labels, strict=True):
        choices = (f" {text_in(record, 'sol1')}", f" {text_in(record, 'sol2')}")
        yield Question(f"Question: {text_in(record, 'goal')}\nAnswer:", choices, answer)


TASK = Task(
    title="PIQA",
    category="commonsense",
    language="en",
    published="https://github.com/ybisk/ybisk.github.io/tree/master/piqa",
    layouts=(("piqa/valid.jsonl",),),
    questions=questions,
    normalization="characters",
)
