"""OCNLI (arXiv 2010.05444): whether a sentence follows from another, contradicts it, or neither."""

from mindpangu.evaluation.forms.chinese_inference import chinese_inference
from mindpangu.evaluation.task import Task

TASK = Task(
    title="OCNLI",
    category="inference",
    language="zh",
    published="https://github.com/CLUEbenchmark/OCNLI",
    layouts=(("ocnli/dev.json",), ("ocnli/dev.jsonl",), ("fewclue/ocnli/test_public.json",)),
    questions=chinese_inference,
)
