"""CHID (arXiv 1906.01265): the idiom that fits a gap. FewCLUE's form, with one gap in a text."""

from collections.abc import Iterator
from pathlib import Path

from mindpangu.evaluation.task import Question, Task
from mindpangu.evaluation.task_files import json_lines, text_in

_GAP = "#idiom#"


def questions(path: Path) -> Iterator[Question]:
    for record in json_lines(path):
        before, gap, after = text_in(record, "content").partition(_GAP)
        if not gap:
            raise ValueError(f"a text without {_GAP}")
        yield Question(before, tuple(idiom + after for idiom in record["candidates"]), record.get("answer"))


TASK = Task(
    title="CHID",
    category="cloze",
    language="zh",
    published="https://github.com/CLUEbenchmark/FewCLUE",
    layouts=(("fewclue/chid/test_public.json",), ("chid/test_public.json",)),
    questions=questions,
    normalization="sum",  # all idioms have four characters, and the rest of the text is the same
)
