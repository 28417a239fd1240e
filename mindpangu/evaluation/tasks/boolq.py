"""BoolQ (SuperGLUE, arXiv 1905.00537): a question about a passage, to be answered with yes or no."""

from collections.abc import Iterator
from pathlib import Path

from mindpangu.evaluation.forms import superglue
from mindpangu.evaluation.task import Question, Task
from mindpangu.evaluation.task_files import index_of, json_lines, text_in


def questions(path: Path) -> Iterator[Question]:
    for record in json_lines(path):
        prompt = f"{text_in(record, 'passage')}\nQuestion: {text_in(record, 'question')}?\nAnswer:"
        answer = index_of(record["label"], ("true", "false")) if "label" in record else None
        yield Question(prompt, (" yes", " no"), answer)


TASK = Task(
    title="BoolQ",
    category="reading comprehension",
    language="en",
    published=superglue.PUBLISHED,
    layouts=superglue.layouts("BoolQ"),
    questions=questions,
    normalization="sum",
)
