"""TNEWS (CLUE, arXiv 2004.05986): the section of a news headline."""

from collections.abc import Iterator
from pathlib import Path

from mindpangu.evaluation.forms.candidates import with_three_others
from mindpangu.evaluation.task import Question, Task
from mindpangu.evaluation.task_files import json_lines, text_in

SECTIONS = {
    "news_story": "故事",
    "news_culture": "文化",
    "news_entertainment": "娱乐",
    "news_sports": "体育",
    "news_finance": "财经",
    "news_house": "房产",
    "news_car": "汽车",
    "news_edu": "教育",
    "news_tech": "科技",
    "news_military": "军事",
    "news_travel": "旅游",
    "news_world": "国际",
    "news_stock": "股票",
    "news_agriculture": "农业",
    "news_game": "电竞",
}


def questions(path: Path) -> Iterator[Question]:
    for index, record in enumerate(json_lines(path)):
        choices, answer = with_three_others(SECTIONS[record["label_desc"]], SECTIONS.values(), index)
        yield Question(
            f"{text_in(record, 'sentence')}\n这是一条关于", tuple(f"{each}的新闻" for each in choices), answer
        )


TASK = Task(
    title="TNEWS",
    category="classification",
    language="zh",
    published="https://github.com/CLUEbenchmark/CLUE",
    layouts=(("tnews/dev.json",), ("fewclue/tnews/test_public.json",)),
    questions=questions,
)
