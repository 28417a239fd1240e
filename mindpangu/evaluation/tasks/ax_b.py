"""AX-b (SuperGLUE's broad diagnostics, arXiv 1905.00537): whether a sentence follows from another."""

from collections.abc import Iterator
from pathlib import Path

from mindpangu.evaluation.forms import superglue
from mindpangu.evaluation.task import Question, Task
from mindpangu.evaluation.task_files import index_of, json_lines, text_in


def questions(path: Path) -> Iterator[Question]:
    for record in json_lines(path):
        prompt = f"{text_in(record, 'sentence1')}\nQuestion: {text_in(record, 'sentence2')} True or False?\nAnswer:"
        answer = index_of(record["label"], ("entailment", "not_entailment")) if "label" in record else None
        yield Question(prompt, (" True", " False"), answer)


TASK = Task(
    title="AX-b",
    category="inference",
    language="en",
    published=superglue.PUBLISHED,
    layouts=(("superglue/AX-b/AX-b.jsonl",), ("AX-b/AX-b.jsonl",)),
    questions=questions,
    normalization="sum",
)
