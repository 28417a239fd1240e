"""MultiRC (SuperGLUE, arXiv 1905.00537): whether an answer to a question about a passage is right."""

from collections.abc import Iterator
from pathlib import Path

from mindpangu.evaluation.forms import superglue
from mindpangu.evaluation.task import Question, Task
from mindpangu.evaluation.task_files import index_of, json_lines, text_in


def questions(path: Path) -> Iterator[Question]:
    for record in json_lines(path):
        passage = record["passage"]
        for asked in passage["questions"]:
            for given in asked["answers"]:
                judged = f'Is "{text_in(given, "text")}" right?'
                prompt = f"{text_in(passage, 'text')}\nQuestion: {text_in(asked, 'question')}\n{judged}\nAnswer:"
                answer = index_of(given["label"], ("1", "0")) if "label" in given else None
                yield Question(prompt, (" yes", " no"), answer)


TASK = Task(
    title="MultiRC",
    category="reading comprehension",
    language="en",
    published=superglue.PUBLISHED,
    layouts=superglue.layouts("MultiRC"),
    questions=questions,
    normalization="sum",
)
