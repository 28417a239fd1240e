"""Every task: its files as published, its questions, the accuracy of an oracle and of chance."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from task_examples import FILES, lines, write_files

from mindpangu.errors import EvaluationError
from mindpangu.evaluation.choices import Prediction
from mindpangu.evaluation.task import NORMALIZATIONS
from mindpangu.evaluation.task_record import task_result
from mindpangu.evaluation.tasks import all_tasks, tasks_named

PROJECT = Path(__file__).parents[2]
REAL = PROJECT.parent / "shared" / "data" / "eval"

COUNTS = {  # of the published files that lie in the data folder
    "boolq": 32,
    "c3": 3816,
    "cb": 32,
    "chid": 2002,
    "cluewsc": 976,
    "copa": 32,
    "csl": 2838,
    "eprstmt": 610,
    "iflytek": 1749,
    "mmlu": 14042,
    "multirc": 154,
    "ocnli": 2950,
    "piqa": 1838,
    "rte": 32,
    "tnews": 2010,
    "wic": 32,
    "wsc": 32,
    "xcopa_zh": 500,
}


def predictions_of(questions, choose):
    """Predictions of a model that gives its choice the highest score."""
    found = []
    for question in questions:
        chosen = choose(question)
        scores = tuple(float(i == chosen) for i in range(len(question.choices)))
        found.append(Prediction(scores, chosen, question.answer, False, False, question.subject))
    return found


def test_every_task_has_an_example():
    assert sorted(FILES) == sorted(all_tasks())


@pytest.mark.parametrize("name", sorted(FILES))
def test_questions_of_the_published_form(name, tmp_path):
    task = all_tasks()[name]
    _, answers = FILES[name]

    assert task.files(tmp_path) == []
    questions = task.load(task.files(write_files(name, tmp_path)))

    assert task.normalization in NORMALIZATIONS
    assert task.language in ("zh", "en")
    if answers is not None:
        assert [question.answer for question in questions] == answers
    for question in questions:
        assert question.prompt
        assert len(set(question.choices)) == len(question.choices)
        # neither prompt nor other choices show which choice is right
        assert question.prompt.strip() == question.prompt


@pytest.mark.parametrize("name", ["iflytek", "tnews"])
def test_drawn_choices_contain_the_label_and_never_change(name, tmp_path):
    task = all_tasks()[name]
    files = task.files(write_files(name, tmp_path))

    questions = task.load(files)

    assert questions == task.load(files)
    assert all(len(question.choices) == 4 for question in questions)
    labels = {"iflytek": list("甲乙丙丁戊"), "tnews": ["故事的新闻", "股票的新闻"]}[name]
    assert [question.choices[question.answer] for question in questions] == labels


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_real_files_an_oracle_and_chance(name):
    task = all_tasks()[name]
    files = task.files(REAL)
    if not files:
        pytest.skip(f"the files of {name} are not below {REAL}")

    questions = task.load(files)

    assert len(questions) == COUNTS[name]
    oracle = task_result(predictions_of(questions, lambda question: question.answer))
    assert oracle["accuracy"] == oracle["low"] == oracle["high"] == 1.0
    rng = random.Random(1)
    guessed = task_result(predictions_of(questions, lambda question: rng.randrange(len(question.choices))))
    assert guessed["low"] <= guessed["chance"] <= guessed["high"]
    assert guessed["chance"] == pytest.approx(np.mean([1 / len(question.choices) for question in questions]))


def test_subjects_count_equally(tmp_path):
    task = all_tasks()["mmlu"]
    questions = task.load(task.files(write_files("mmlu", tmp_path)))

    result = task_result(predictions_of([*questions[:1] * 3, questions[2]], lambda question: 2))

    assert result["subjects"] == {"college_law": 1.0, "zoology": 1.0}
    wrong_once = task_result(predictions_of([*questions[:1] * 3, questions[3]], lambda question: 2))
    assert wrong_once["accuracy"] == 0.5  # 3 of 3 and 0 of 1


def test_questions_without_an_answer_do_not_count(tmp_path):
    path = tmp_path / "fewclue" / "eprstmt" / "test_public.json"
    path.parent.mkdir(parents=True)
    path.write_text(lines({"sentence": "不错"}, {"sentence": "不好", "label": "Negative"}), encoding="utf-8")
    task = all_tasks()["eprstmt"]

    result = task_result(predictions_of(task.load([path]), lambda question: 1))

    assert (result["questions"], result["without_answer"], result["accuracy"]) == (2, 1, 1.0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"sentence": "x", "label": "Negative"}\nnonsense\n', "after 1 questions of EPRSTMT: line 2: "),
        ('{"label": "Negative"}\n', "after 0 questions of EPRSTMT: no 'sentence'"),
        ('{"sentence": 3, "label": "Negative"}\n', '"sentence" is int, not a text'),
        ('{"sentence": "x", "label": "Sad"}\n', "the answer 'Sad' is not among Positive, Negative"),
    ],
)
def test_files_of_another_form_are_refused_with_the_place(content, reason, tmp_path):
    path = tmp_path / "test_public.json"
    path.write_text(content)

    with pytest.raises(EvaluationError) as caught:
        all_tasks()["eprstmt"].load([path])

    assert reason in str(caught.value)
    assert str(path) in str(caught.value)
    assert "FewCLUE" in str(caught.value)


def test_the_documentation_shows_the_prompts_as_they_read(tmp_path):
    def cell(text):
        return "`" + text.replace("\n", "⏎") + "`"

    page = (PROJECT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for name, task in all_tasks().items():
        question = task.load(task.files(write_files(name, tmp_path / name)))[0]
        files = " and ".join(map(cell, task.layouts[0]))
        choices = " / ".join(map(cell, question.choices))
        columns = (cell(name), task.title, task.category, files, cell(question.prompt), choices, task.normalization)
        assert f"| {' | '.join(columns)} |" in page.splitlines()


@pytest.mark.parametrize(
    ("choices", "answer", "reason"),
    [
        (["一", 2], "一", "a question has the choices ['一', 2]; needed are two or more texts"),
        (["一"], "一", "needed are two or more texts"),
        (["一", ""], "一", "needed are two or more texts"),
    ],
)
def test_choices_that_are_no_texts_are_refused(choices, answer, reason, tmp_path):
    path = tmp_path / "c3-m-dev.json"
    path.write_text(json.dumps([[["话"], [{"question": "谁？", "choice": choices, "answer": answer}], "1"]]))

    with pytest.raises(EvaluationError) as caught:
        all_tasks()["c3"].load([path])

    assert reason in str(caught.value)


@pytest.mark.parametrize("answer", [2, -1, "1"])
def test_an_answer_that_is_no_index_is_refused(answer, tmp_path):
    path = tmp_path / "test_public.json"
    path.write_text(lines({"content": "到#idiom#的", "candidates": ["甲", "乙"], "answer": answer}))

    with pytest.raises(EvaluationError) as caught:
        all_tasks()["chid"].load([path])

    assert f"the answer is choice {answer!r} of 2, counted from 0" in str(caught.value)


def test_names_of_tasks():
    assert list(tasks_named("c3, ocnli")) == ["c3", "ocnli"]
    assert set(tasks_named("chinese")) | set(tasks_named("english")) == set(tasks_named("all")) == set(all_tasks())
    with pytest.raises(EvaluationError, match=r"there is no task 'c4'; known are chinese, english, all, afqmc, "):
        tasks_named("c3,c4")
    with pytest.raises(EvaluationError, match="--tasks names no task"):
        tasks_named(" , ")
