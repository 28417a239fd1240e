"""ARC (arXiv 1803.05457), the hard part: science questions of American schools."""

from mindpangu.evaluation.forms.science_exams import science_exam
from mindpangu.evaluation.task import Task

TASK = Task(
    title="ARC-c",
    category="exams",
    language="en",
    published="https://allenai.org/data/arc",
    layouts=(("ARC-V1-Feb2018-2/ARC-Challenge/ARC-Challenge-Test.jsonl",), ("arc/ARC-Challenge-Test.jsonl",)),
    questions=science_exam,
    normalization="characters",
)
