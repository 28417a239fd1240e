"""The questions of AFQMC and BUSTM, which have the same form: whether two sentences mean the same."""

from collections.abc import Iterator
from pathlib import Path

from mindpangu.evaluation.task import Question
from mindpangu.evaluation.task_files import index_of, json_lines, text_in

_LABELS = {"1": "一样", "0": "不一样"}


def chinese_paraphrases(path: Path) -> Iterator[Question]:
    """Reads the questions."""
    for record in json_lines(path):
        sentences = f"“{text_in(record, 'sentence1')}”和“{text_in(record, 'sentence2')}”"
        answer = index_of(record["label"], list(_LABELS)) if "label" in record else None
        yield Question(f"{sentences}这两句话的意思", tuple(_LABELS.values()), answer)
