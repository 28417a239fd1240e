"""EPRSTMT (FewCLUE, arXiv 2107.07498): whether a product review is positive or negative."""

from collections.abc import Iterator
from pathlib import Path

from mindpangu.evaluation.task import Question, Task
from mindpangu.evaluation.task_files import index_of, json_lines, text_in


def questions(path: Path) -> Iterator[Question]:
    for record in json_lines(path):
        answer = index_of(record["label"], ("Positive", "Negative")) if "label" in record else None
        yield Question(f"评论：{text_in(record, 'sentence')}\n这条评论的态度是", ("正面的", "负面的"), answer)


TASK = Task(
    title="EPRSTMT",
    category="classification",
    language="zh",
    published="https://github.com/CLUEbenchmark/FewCLUE",
    layouts=(("fewclue/eprstmt/test_public.json",), ("eprstmt/test_public.json",), ("eprstmt/dev.json",)),
    questions=questions,
)
