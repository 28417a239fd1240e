"""C-Eval (arXiv 2305.08322): Chinese exam questions of 52 subjects. The answers of its test files are not public."""

from mindpangu.evaluation.forms.chinese_exams import chinese_exam
from mindpangu.evaluation.task import Task

TASK = Task(
    title="C-Eval",
    category="exams",
    language="zh",
    published="https://huggingface.co/datasets/ceval/ceval-exam",
    layouts=(("ceval/val/*_val.csv",),),
    questions=chinese_exam,
    normalization="sum",
)
