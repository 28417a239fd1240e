"""XCOPA in Chinese (arXiv 2005.00333): the more plausible cause or effect."""

from collections.abc import Iterator
from pathlib import Path

from mindpangu.evaluation.task import Question, Task
from mindpangu.evaluation.task_files import json_lines, text_in

_CONNECTIVES = {"cause": "因为", "effect": "所以"}


def questions(path: Path) -> Iterator[Question]:
    for record in json_lines(path):
        premise = text_in(record, "premise").rstrip("。")
        choices = (text_in(record, "choice1"), text_in(record, "choice2"))
        yield Question(f"{premise}，{_CONNECTIVES[record['question']]}", choices, record.get("label"))


TASK = Task(
    title="XCOPA-zh",
    category="commonsense",
    language="zh",
    published="https://github.com/cambridgeltl/xcopa",
    layouts=(("xcopa-zh/test.zh.jsonl",), ("xcopa/zh/test.zh.jsonl",), ("xcopa-zh/val.zh.jsonl",)),
    questions=questions,
)
