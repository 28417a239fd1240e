"""The ladder of tiny models: how its rungs are sized, its table, and in the slow suite the quick one as a whole."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest

from mindpangu.config import load_config, to_yaml
from mindpangu.model.parameter_count import count_parameters
from mindpangu.tiny.compute import training_flops

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("tiny_ladder")


@pytest.fixture
def ladder(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    return tool.Ladder(tmp_path, tool.FULL, 0)


def test_a_smaller_vocabulary_makes_the_model_wider(tool, ladder):
    base = {"model.vocab_size": "8000"}
    sizes = {key: str(value) for key, value in ladder._widened(base).items()}
    compact = load_config(tool.CONFIG, {"model.vocab_size": str(tool.FULL.pieces)} | sizes)
    before = load_config(tool.CONFIG, base)
    assert compact.model.hidden_size > before.model.hidden_size
    assert count_parameters(compact).total == pytest.approx(count_parameters(before).total, rel=0.15)


def test_a_parent_has_twice_the_parameters_and_is_nowhere_smaller(tool, ladder):
    child = {
        "model.num_layers": "6",
        "model.hidden_size": "128",
        "model.num_heads": "4",
        "model.ffn_hidden_size": "344",
    }
    parent = load_config(tool.CONFIG, child | ladder._parent_sizes(child))
    small = load_config(tool.CONFIG, child)
    assert count_parameters(parent).total == pytest.approx(2 * count_parameters(small).total, rel=0.1)
    for key in ("num_layers", "hidden_size", "num_heads", "ffn_hidden_size"):
        assert getattr(parent.model, key) >= getattr(small.model, key)
    assert parent.model.hidden_size / parent.model.num_heads == small.model.hidden_size / small.model.num_heads


def test_every_rung_gets_the_compute_of_the_base(tool, ladder):
    base = training_flops(load_config(tool.CONFIG, {"training.steps": str(tool.FULL.steps)}))
    for words in ({"model.vocab_size": "5000"}, {"model.num_layers": "9"}):
        config = load_config(tool.CONFIG, ladder._with_steps(words))
        assert training_flops(config) == pytest.approx(base, rel=0.01)


def test_the_table_shows_paired_gains_beside_the_papers(tool):
    def climb(shift):
        bits = {"base": 2.5, "tokenizer": 2.4, "architecture": 2.45, "inheritance": 2.2, "rounds": 2.15}
        return {
            name: tool.Rung(2_849_280, 1200, {"zh": 2 * each + shift, "en": shift}, 14e12)
            for name, each in bits.items()
        }

    one = tool.format_table([climb(0.0)]).splitlines()
    assert one[1].split() == ["base", "2.8M", "1,200", "14.00", "0.00", "2.5000", "42.41"]
    assert one[2].split() == [
        "+",
        "tokenizer",
        "2.8M",
        "1,200",
        "14.00",
        "0.00",
        "2.4000",
        "+0.1000",
        "44.11",
        "+1.70",
    ]
    assert one[3].split()[7:] == ["-0.0500", "46.53", "+2.42"]
    # the seeds differ by 0.1, their gains do not
    three = tool.format_table([climb(0.0), climb(0.1), climb(0.2)]).splitlines()
    assert three[4].split()[6:] == ["2.3000", "+0.250", "±", "0.000", "49.79", "+3.26"]


def test_the_published_table_is_that_of_the_committed_figures(tool):
    report = json.loads((ROOT / "docs" / "results" / "tiny_ladder.json").read_text())
    assert (report["command"], len(report["seeds"])) == ("bash recipes/tiny_ladder.sh", 3)
    assert report["size"] == asdict(tool.FULL)
    table = tool.format_table([{name: tool.Rung(**rung) for name, rung in seed.items()} for seed in report["seeds"]])
    assert f"```text\n{table}\n```" in (ROOT / "docs" / "tiny.md").read_text()


def test_an_inheritance_that_was_killed_is_done_again(tool, ladder, tmp_path):
    """Its folder is there as soon as anything is written; what makes it whole is written last."""
    words, asked = {"model.num_layers": "6"}, []

    class Recorded:
        def run(self, name, *words, options=(), stages=()):
            asked.extend(stage[:2] for stage in stages if stage[0] == "tiny")
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "config.yaml").write_text(to_yaml(load_config(tool.CONFIG)))
            return tmp_path / name

    ladder._runs = Recorded()
    half = tmp_path / "inherited" / ".iteration_00000800.writing"
    half.mkdir(parents=True)
    _, inherited = ladder._inherit(words)
    assert asked == [["tiny", "inherit"]]
    assert not half.exists()
    inherited.mkdir()
    (inherited / "report.json").touch()
    ladder._inherit(words)
    assert len(asked) == 1


def test_a_search_whose_points_failed_is_asked_again(tool, ladder, tmp_path, monkeypatch):
    asked, failed = [], {"depth002_width00064_ffn00064": "out of memory"}

    def search(*words):
        asked.append(words[:2])
        (tmp_path / "architecture").mkdir(exist_ok=True)
        point = {"depth": 3, "width": 64, "ffn_width": 128, "num_heads": 2}
        (tmp_path / "architecture" / "results.json").write_text(json.dumps({"points": [point], "failed": failed}))

    monkeypatch.setattr(tool, "mindpangu", search)
    ladder._best_point({})
    failed.clear()
    ladder._best_point({})
    assert ladder._best_point({})["model.num_layers"] == "3"
    assert asked == [("tiny", "architecture")] * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0"], "argument --seeds: invalid choice: 0"),
        (["--seeds", "11"], "argument --seeds: invalid choice: 11"),
        (["--out", "README.md"], "--out README.md is a file; give the name of a folder"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(tool, ladder, monkeypatch, capsys, words, message):
    monkeypatch.setattr(tool.sys, "argv", ["tiny_ladder.py", *words])
    monkeypatch.setattr(tool.Ladder, "climb", lambda self: pytest.fail("it began"))
    with pytest.raises(SystemExit):
        tool.main()
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_quick_ladder(tmp_path):
    command = ["bash", "recipes/tiny_ladder.sh", "--quick", "--out", str(tmp_path / "ladder")]
    environment = os.environ | {"MINDPANGU_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    run = partial(subprocess.run, command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    (rungs,) = json.loads((tmp_path / "ladder" / "result.json").read_text())["seeds"]
    assert list(rungs) == ["base", "tokenizer", "architecture", "inheritance", "rounds"]
    for rung in rungs.values():
        assert rung["compute"] == pytest.approx(rungs["base"]["compute"], rel=0.05)
    again = run()
    assert again.stdout == done.stdout
