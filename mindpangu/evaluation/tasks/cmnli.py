"""CMNLI (CLUE, arXiv 2004.05986): Chinese MNLI and XNLI; the form of OCNLI."""

from mindpangu.evaluation.forms.chinese_inference import chinese_inference
from mindpangu.evaluation.task import Task

TASK = Task(
    title="CMNLI",
    category="inference",
    language="zh",
    published="https://github.com/CLUEbenchmark/CLUE",
    layouts=(("cmnli/dev.json",),),
    questions=chinese_inference,
)
