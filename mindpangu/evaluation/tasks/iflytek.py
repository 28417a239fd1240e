"""IFLYTEK (CLUE, arXiv 2004.05986): the category of an app, from its description."""

from collections.abc import Iterator
from pathlib import Path

from mindpangu.evaluation.forms.candidates import with_three_others
from mindpangu.evaluation.task import Question, Task
from mindpangu.evaluation.task_files import json_lines, text_in


def questions(path: Path) -> Iterator[Question]:
    records = list(json_lines(path))
    categories = sorted({text_in(record, "label_des") for record in records})
    for index, record in enumerate(records):
        choices, answer = with_three_others(record["label_des"], categories, index)
        yield Question(f"{text_in(record, 'sentence')}\n这个应用的类别是", choices, answer)


TASK = Task(
    title="IFLYTEK",
    category="classification",
    language="zh",
    published="https://github.com/CLUEbenchmark/CLUE",
    layouts=(("iflytek/dev.json",), ("fewclue/iflytek/test_public.json",)),
    questions=questions,
)
