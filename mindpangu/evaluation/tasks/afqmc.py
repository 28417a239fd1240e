"""AFQMC (CLUE, arXiv 2004.05986): whether two questions to a bank mean the same."""

from mindpangu.evaluation.forms.chinese_paraphrases import chinese_paraphrases
from mindpangu.evaluation.task import Task

TASK = Task(
    title="AFQMC",
    category="classification",
    language="zh",
    published="https://github.com/CLUEbenchmark/CLUE",
    layouts=(("afqmc/dev.json",),),
    questions=chinese_paraphrases,
    normalization="tokens",
)
