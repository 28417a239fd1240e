"""`mindpangu evaluate --tasks`: results in the run folder, a table, and errors that name the remedy."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))
sys.path.insert(0, str(Path(__file__).parents[1] / "generation"))

from checkpoints import open_model, save
from task_examples import FILES, write_files

from mindpangu.cli.evaluate_tasks import spread_evenly
from mindpangu.cli.main import main
from mindpangu.config import to_yaml


@pytest.fixture(scope="module")
def run(tiny_overrides, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    model = open_model(tiny_overrides)
    save(model, folder / "checkpoint")
    (folder / "config.yaml").write_text(to_yaml(model.config), encoding="utf-8")
    (folder / "latest_checkpointed_iteration.txt").write_text("1\n")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in FILES:
        write_files(name, folder)
    return folder


def evaluate(run, data, *words):
    return main(["evaluate", "--checkpoint", str(run), "--data", str(data), "--batch-size", "4", *words])


def test_every_task_is_answered_once(run, data, capsys):
    assert evaluate(run, data, "--tasks", "all") == 0

    table = capsys.readouterr().out
    assert all(name in table for name in FILES)
    for name, (_, answers) in FILES.items():
        result = json.loads((run / "evaluation" / f"{name}.json").read_text())
        assert result["step"] == 1
        assert result["domain"] == result["language"]
        assert len(result["predictions"]) == result["questions"]
        if answers is not None:
            assert [each["answer"] for each in result["predictions"]] == answers
        assert 0 <= result["low"] <= result["accuracy"] <= result["high"] <= 1
    written = (run / "evaluation" / "c3.json").stat().st_mtime_ns
    assert evaluate(run, data, "--tasks", "c3") == 0
    assert (run / "evaluation" / "c3.json").stat().st_mtime_ns == written  # up to date
    assert evaluate(run, data, "--tasks", "c3", "--limit", "2", "--domain", "bilingual") == 0
    result = json.loads((run / "evaluation" / "c3.json").read_text())
    assert (result["questions"], result["domain"]) == (2, "bilingual")


def test_the_list_names_the_files_that_were_found(data, capsys):
    assert main(["evaluate", "--list", "--data", str(data)]) == 0

    listed = capsys.readouterr().out
    assert "c3/c3-m-dev.json" in listed or "2 found" in listed
    assert "BoolQ/val.jsonl" in listed
    assert main(["evaluate", "--list"]) == 0
    assert "BoolQ/val.jsonl" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "c4"], "there is no task 'c4'; known are chinese, english, all, afqmc"),
        (["--tasks", "c3", "--limit", "0"], "--limit is 0; allowed: >= 1"),
        (["--tasks", "c3", "--batch-size", "0"], "--batch-size is 0; allowed: >= 1"),
        (["--tasks", "c3", "--domain", "fr"], "the model has no domain 'fr'; choose one with --domain: "),
    ],
)
def test_options_that_cannot_be_used(run, data, words, message, capsys):
    assert evaluate(run, data, *words) == 1

    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--data", "."], ["--domain", "zh"], ["--limit", "3"]])
def test_options_of_tasks_are_refused_without_tasks(run, words, capsys):
    assert main(["evaluate", "--checkpoint", str(run), *words]) == 1

    assert f"{words[0]} is for tasks; give --tasks NAMES too" in capsys.readouterr().err


def test_missing_files_are_named_with_their_publisher(run, tmp_path, capsys):
    assert evaluate(run, tmp_path, "--tasks", "c3,cmnli") == 1

    message = capsys.readouterr().err
    assert "lacks the files of 2 of the tasks" in message
    assert "c3: c3/c3-m-dev.json and c3/c3-d-dev.json or c3/m-dev.json and c3/d-dev.json, published by" in message
    assert "cmnli: cmnli/dev.json, published by https://github.com/CLUEbenchmark/CLUE" in message
    assert main(["evaluate", "--checkpoint", str(run), "--tasks", "c3"]) == 1
    assert "--tasks needs --data DIR" in capsys.readouterr().err


def test_questions_of_a_test_set_without_answers_are_refused(run, tmp_path, capsys):
    path = tmp_path / "csl" / "dev.json"
    path.parent.mkdir()
    path.write_text('{"id": 1, "abst": "一段摘要", "keyword": ["摘要"]}\n', encoding="utf-8")

    assert evaluate(run, tmp_path, "--tasks", "csl") == 1

    assert "csl: no question in " in capsys.readouterr().err


def test_a_limit_spreads_the_questions():
    assert spread_evenly(list(range(10)), 4) == [0, 2, 5, 7]
    assert spread_evenly([1, 2], 5) == [1, 2]
    assert spread_evenly([1, 2], None) == [1, 2]
