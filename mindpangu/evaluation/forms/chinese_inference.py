"""The questions of OCNLI and CMNLI, which have the same form."""

from collections.abc import Iterator
from pathlib import Path

from mindpangu.evaluation.task import Question
from mindpangu.evaluation.task_files import index_of, json_lines, text_in

_LABELS = {"entailment": "对", "neutral": "或许", "contradiction": "错"}


def chinese_inference(path: Path) -> Iterator[Question]:
    """Reads the questions. As in PanGu-α, the second sentence follows the judgment, and counts in its likelihood."""
    for record in json_lines(path):
        if record.get("label") == "-":  # the annotators did not agree
            continue
        second = text_in(record, "sentence2")
        choices = tuple(f"{word}，{second}" for word in _LABELS.values())
        answer = index_of(record["label"], list(_LABELS)) if "label" in record else None
        yield Question(f"{text_in(record, 'sentence1')}？", choices, answer)
