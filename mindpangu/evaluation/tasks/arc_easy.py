"""ARC (arXiv 1803.05457), the easy part: science questions of American schools."""

from mindpangu.evaluation.forms.science_exams import science_exam
from mindpangu.evaluation.task import Task

TASK = Task(
    title="ARC-e",
    category="exams",
    language="en",
    published="https://allenai.org/data/arc",
    layouts=(("ARC-V1-Feb2018-2/ARC-Easy/ARC-Easy-Test.jsonl",), ("arc/ARC-Easy-Test.jsonl",)),
    questions=science_exam,
    normalization="characters",
)
