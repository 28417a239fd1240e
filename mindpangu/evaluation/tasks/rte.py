"""RTE (SuperGLUE, arXiv 1905.00537): whether a sentence follows from a text."""

from collections.abc import Iterator
from pathlib import Path

from mindpangu.evaluation.forms import superglue
from mindpangu.evaluation.task import Question, Task
from mindpangu.evaluation.task_files import index_of, json_lines, text_in


def questions(path: Path) -> Iterator[Question]:
    for record in json_lines(path):
        prompt = f"{text_in(record, 'premise')}\nQuestion: {text_in(record, 'hypothesis')} True or False?\nAnswer:"
        answer = index_of(record["label"], ("entailment", "not_entailment")) if "label" in record else None
        yield Question(prompt, (" True", " False"), answer)


TASK = Task(
    title="RTE",
    category="inference",
    language="en",
    published=superglue.PUBLISHED,
    layouts=superglue.layouts("RTE"),
    questions=questions,
    normalization="sum",
)
