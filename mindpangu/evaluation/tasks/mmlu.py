"""MMLU (arXiv 2009.03300): exam questions of 57 subjects, with four choices each."""

from collections.abc import Iterator
from pathlib import Path

from mindpangu.evaluation.task import Question, Task
from mindpangu.evaluation.task_files import csv_rows, index_of

_LETTERS = ("A", "B", "C", "D")


def questions(path: Path) -> Iterator[Question]:
    """Reads a subject: rows of a question, four choices, and the answer as a letter or an index; perhaps a header."""
    subject = path.stem.removesuffix("_test").removesuffix("_val").removesuffix("_dev")
    heading = f"The following is a multiple choice question about {subject.replace('_', ' ')}."
    rows = csv_rows(path)
    if rows and rows[0][-1].strip().lower() == "answer":
        rows = rows[1:]
    for row in rows:
        if len(row) != 6:
            raise ValueError(f"a row has {len(row)} columns; expected a question, four choices, and the answer")
        question, *choices, answer = row
        listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=True))
        letters = _LETTERS if answer.strip().upper() in _LETTERS else ("0", "1", "2", "3")
        prompt = f"{heading}\n\n{question.strip()}\n{listed}\nAnswer:"
        yield Question(prompt, tuple(f" {letter}" for letter in _LETTERS), index_of(answer, letters), subject)


TASK = Task(
    title="MMLU",
    category="exams",
    language="en",
    published="https://github.com/hendrycks/test",
    layouts=(("mmlu/test/*_test.csv",),),
    questions=questions,
    normalization="sum",
)
