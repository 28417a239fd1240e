"""BUSTM (FewCLUE, arXiv 2107.07498): whether two requests to an assistant mean the same."""

from mindpangu.evaluation.forms.chinese_paraphrases import chinese_paraphrases
from mindpangu.evaluation.task import Task

TASK = Task(
    title="BUSTM",
    category="classification",
    language="zh",
    published="https://github.com/CLUEbenchmark/FewCLUE",
    layouts=(("fewclue/bustm/test_public.json",), ("bustm/test_public.json",)),
    questions=chinese_paraphrases,
    normalization="tokens",
)
