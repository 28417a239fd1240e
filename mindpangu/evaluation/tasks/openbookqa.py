"""OpenBookQA (arXiv 1809.02789): questions that need an elementary fact of science."""

from mindpangu.evaluation.forms.science_exams import science_exam
from mindpangu.evaluation.task import Task

TASK = Task(
    title="OpenBookQA",
    category="exams",
    language="en",
    published="https://allenai.org/data/open-book-qa",
    layouts=(("OpenBookQA-V1-Sep2018/Data/Main/test.jsonl",), ("openbookqa/test.jsonl",)),
    questions=science_exam,
    normalization="unconditional",
)
