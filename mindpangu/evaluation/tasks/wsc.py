"""WSC (SuperGLUE, arXiv 1905.00537): whether a pronoun means a given noun."""

from collections.abc import Iterator
from pathlib import Path

from mindpangu.evaluation.forms import superglue
from mindpangu.evaluation.task import Question, Task
from mindpangu.evaluation.task_files import index_of, json_lines, text_in


def questions(path: Path) -> Iterator[Question]:
    for record in json_lines(path):
        target = record["target"]
        asked = f'Does "{text_in(target, "span2_text")}" refer to "{text_in(target, "span1_text")}"?'
        answer = index_of(record["label"], ("true", "false")) if "label" in record else None
        yield Question(f"{text_in(record, 'text')}\nQuestion: {asked}\nAnswer:", (" yes", " no"), answer)


TASK = Task(
    title="WSC",
    category="Winograd",
    language="en",
    published=superglue.PUBLISHED,
    layouts=superglue.layouts("WSC"),
    questions=questions,
    normalization="sum",
)
