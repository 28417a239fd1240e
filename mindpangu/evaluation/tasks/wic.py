"""WiC (SuperGLUE, arXiv 1905.00537): whether a word means the same in two sentences."""

from collections.abc import Iterator
from pathlib import Path

from mindpangu.evaluation.forms import superglue
from mindpangu.evaluation.task import Question, Task
from mindpangu.evaluation.task_files import index_of, json_lines, text_in


def questions(path: Path) -> Iterator[Question]:
    for record in json_lines(path):
        sentences = f"{text_in(record, 'sentence1')}\n{text_in(record, 'sentence2')}"
        asked = f'Does the word "{text_in(record, "word")}" mean the same in both sentences?'
        answer = index_of(record["label"], ("true", "false")) if "label" in record else None
        yield Question(f"{sentences}\nQuestion: {asked}\nAnswer:", (" yes", " no"), answer)


TASK = Task(
    title="WiC",
    category="word meaning",
    language="en",
    published=superglue.PUBLISHED,
    layouts=superglue.layouts("WiC"),
    questions=questions,
    normalization="sum",
)
