"""The questions of C-Eval and CMMLU: CSV files with a header, one file per subject."""

from collections.abc import Iterator
from pathlib import Path

from mindpangu.evaluation.task import Question
from mindpangu.evaluation.task_files import csv_rows, index_of

LETTERS = ("A", "B", "C", "D")
_HEADING = "以下是单项选择题，请选出其中的正确答案。"


def chinese_exam(path: Path) -> Iterator[Question]:
    """Reads a subject, by the names of the columns, which the publishers spell differently. C-Eval's test files have no
    answers."""
    header, *rows = csv_rows(path)
    column = {name.strip().lower(): index for index, name in enumerate(header)}
    subject = path.stem.removesuffix("_test").removesuffix("_val").removesuffix("_dev")
    for row in rows:
        choices = [row[column[letter.lower()]].strip() for letter in LETTERS]
        listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
        answer = row[column["answer"]].strip() if "answer" in column else ""
        prompt = f"{_HEADING}\n\n{row[column['question']].strip()}\n{listed}\n答案："
        yield Question(prompt, LETTERS, index_of(answer, LETTERS) if answer else None, subject)
