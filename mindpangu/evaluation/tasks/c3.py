"""C3 (arXiv 1904.09679): multiple-choice questions about dialogues and mixed-genre texts."""

from collections.abc import Iterator
from pathlib import Path

from mindpangu.evaluation.task import Question, Task
from mindpangu.evaluation.task_files import index_of, json_value, text_in


def questions(path: Path) -> Iterator[Question]:
    for paragraphs, asked, _ in json_value(path):
        text = "\n".join(paragraphs)
        for each in asked:
            choices = tuple(each["choice"])
            answer = index_of(each["answer"], choices) if each.get("answer") else None
            yield Question(f"{text}\n问：{text_in(each, 'question')}\n答：", choices, answer)


TASK = Task(
    title="C3",
    category="reading comprehension",
    language="zh",
    published="https://github.com/nlpdata/c3",
    layouts=(("c3/c3-m-dev.json", "c3/c3-d-dev.json"), ("c3/m-dev.json", "c3/d-dev.json")),
    questions=questions,
)
