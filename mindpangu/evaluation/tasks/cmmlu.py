"""CMMLU (arXiv 2306.09212): Chinese exam questions of 67 subjects."""

from mindpangu.evaluation.forms.chinese_exams import chinese_exam
from mindpangu.evaluation.task import Task

TASK = Task(
    title="CMMLU",
    category="exams",
    language="zh",
    published="https://github.com/haonan-li/CMMLU",
    layouts=(("cmmlu/test/*.csv",),),
    questions=chinese_exam,
    normalization="sum",
)
