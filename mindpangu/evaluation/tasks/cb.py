"""CB (SuperGLUE, arXiv 1905.00537): whether a sentence follows from a text, contradicts it, or neither."""

from collections.abc import Iterator
from pathlib import Path

from mindpangu.evaluation.forms import superglue
from mindpangu.evaluation.task import Question, Task
from mindpangu.evaluation.task_files import index_of, json_lines, text_in


def questions(path: Path) -> Iterator[Question]:
    for record in json_lines(path):
        asked = f"{text_in(record, 'hypothesis')}. True, False, or Neither?"
        prompt = f"{text_in(record, 'premise')}\nQuestion: {asked}\nAnswer:"
        labels = ("entailment", "contradiction", "neutral")
        answer = index_of(record["label"], labels) if "label" in record else None
        yield Question(prompt, (" True", " False", " Neither"), answer)


TASK = Task(
    title="CB",
    category="inference",
    language="en",
    published=superglue.PUBLISHED,
    layouts=superglue.layouts("CB"),
    questions=questions,
    normalization="sum",
)
