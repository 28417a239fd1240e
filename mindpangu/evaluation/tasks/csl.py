"""CSL (CLUE, arXiv 2004.05986): whether all of some keywords are those of an abstract."""

from collections.abc import Iterator
from pathlib import Path

from mindpangu.evaluation.task import Question, Task
from mindpangu.evaluation.task_files import index_of, json_lines, text_in


def questions(path: Path) -> Iterator[Question]:
    for record in json_lines(path):
        keywords = "、".join(record["keyword"])
        answer = index_of(record["label"], ("1", "0")) if "label" in record else None
        prompt = f"摘要：{text_in(record, 'abst')}\n关键词：{keywords}\n这些关键词"
        yield Question(prompt, ("都是真实的", "不都是真实的"), answer)


TASK = Task(
    title="CSL",
    category="classification",
    language="zh",
    published="https://github.com/CLUEbenchmark/CLUE",
    layouts=(("csl/dev.json",), ("fewclue/csl/test_public.json",)),
    questions=questions,
)
