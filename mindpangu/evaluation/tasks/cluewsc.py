"""CLUEWSC2020 (CLUE, arXiv 2004.05986): whether a pronoun means a given noun."""

from collections.abc import Iterator
from pathlib import Path

from mindpangu.evaluation.task import Question, Task
from mindpangu.evaluation.task_files import index_of, json_lines, text_in


def questions(path: Path) -> Iterator[Question]:
    for record in json_lines(path):
        target = record["target"]
        asked = f"其中的“{text_in(target, 'span2_text')}”指的是“{text_in(target, 'span1_text')}”吗？"
        answer = index_of(record["label"], ("true", "false")) if "label" in record else None
        yield Question(f"{text_in(record, 'text')}\n{asked}", ("是的", "不是"), answer)


TASK = Task(
    title="CLUEWSC2020",
    category="Winograd",
    language="zh",
    published="https://github.com/CLUEbenchmark/CLUE",
    layouts=(("cluewsc2020/dev.json",), ("cluewsc/dev.json",), ("fewclue/cluewsc/test_public.json",)),
    questions=questions,
)
