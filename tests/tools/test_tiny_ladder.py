"""The ladder of tiny models: the sizes of its rungs, its table, and in the slow suite the quick ladder."""

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


def test_a_parent_has_twice_the_parameters_and_no_smaller_dimension(tool, ladder):
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

    for keys in ({"model.vocab_size": "5000"}, {"model.num_layers": "9"}):
        config = load_config(tool.CONFIG, ladder._with_steps(keys))
        assert training_flops(config) == pytest.approx(base, rel=0.01)


def test_a_rung_that_an_earlier_version_trained_is_measured(ladder, monkeypatch):
    older = ROOT / "tests" / "fixtures" / "written_by_0_1_0" / "run"
    monkeypatch.setattr(ladder._runs, "run", lambda *arguments, **options: older)
    monkeypatch.setattr(ladder, "_measure_rung", lambda config, folder, apart: config)

    config = ladder._train("base", {})

    assert [vocabulary.name for vocabulary in config.domains.vocabularies] == ["signs", "letters"]


def test_the_table_shows_paired_gains_next_to_the_papers(tool):
    def rungs(shift):
        bits = {"base": 2.5, "tokenizer": 2.4, "architecture": 2.45, "inheritance": 2.2, "rounds": 2.15}
        return {
            name: tool.Rung(2_849_280, 1200, {"zh": 2 * value + shift, "en": shift}, 14e12)
            for name, value in bits.items()
        }

    one = tool.format_table([rungs(0.0)]).splitlines()
    assert one[1].split() == ["base", "2.8M", "1,200", "14.00", "0.00", "2.5000", "42.41"]
    assert one[2].split()[:6] == ["+", "tokenizer", "2.8M", "1,200", "14.00", "0.00"]
    assert one[2].split()[6:] == ["2.4000", "+0.1000", "44.11", "+1.70"]
    assert one[3].split()[7:] == ["-0.0500", "46.53", "+2.42"]

    # the seeds differ by 0.1, but their gains are equal
    three = tool.format_table([rungs(0.0), rungs(0.1), rungs(0.2)]).splitlines()
    assert three[4].split()[6:] == ["2.3000", "+0.250", "±", "0.000", "49.79", "+3.26"]


def test_the_published_table_matches_the_committed_figures(tool):
    report = json.loads((ROOT / "docs" / "results" / "tiny_ladder.json").read_text())
    assert (report["command"], len(report["seeds"])) == ("bash recipes/tiny_ladder.sh", 3)
    assert report["size"] == asdict(tool.FULL)

    table = tool.format_table([{name: tool.Rung(**rung) for name, rung in seed.items()} for seed in report["seeds"]])

    assert f"```text\n{table}\n```" in (ROOT / "docs" / "tiny.md").read_text()


def test_a_killed_inheritance_is_repeated(tool, ladder, tmp_path):
    """Its folder exists as soon as anything is written; the report that completes it is written last."""
    keys = {"model.num_layers": "6"}
    verbs = []

    class RecordingRuns:
        def run(self, name, keys, options=(), stages=()):
            verbs.extend(stage[:2] for stage in stages if stage[0] == "tiny")
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "config.yaml").write_text(to_yaml(load_config(tool.CONFIG)))
            return tmp_path / name

    ladder._runs = RecordingRuns()
    unfinished = tmp_path / "inherited" / ".iteration_00000800.writing"
    unfinished.mkdir(parents=True)

    _, inherited = ladder._inherit(keys)

    assert verbs == [["tiny", "inherit"]]
    assert not unfinished.exists()

    inherited.mkdir()
    (inherited / "report.json").touch()
    ladder._inherit(keys)

    assert len(verbs) == 1


def test_a_search_with_failed_points_is_repeated(tool, ladder, tmp_path, monkeypatch):
    verbs = []
    failed = {"depth002_width00064_ffn00064": "out of memory"}

    def search(*words):
        verbs.append(words[:2])
        (tmp_path / "architecture").mkdir(exist_ok=True)
        point = {"depth": 3, "width": 64, "ffn_width": 128, "num_heads": 2}
        (tmp_path / "architecture" / "results.json").write_text(json.dumps({"points": [point], "failed": failed}))

    monkeypatch.setattr(tool, "mindpangu", search)

    ladder._best_point({})
    failed.clear()
    ladder._best_point({})

    assert ladder._best_point({})["model.num_layers"] == "3"
    assert verbs == [("tiny", "architecture")] * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0"], "argument --seeds: invalid choice: 0"),
        (["--seeds", "11"], "argument --seeds: invalid choice: 11"),
        (["--out", "README.md"], "--out README.md is a file; give the name of a folder"),
    ],
)
def test_mistakes_are_refused_before_anything_is_trained(tool, ladder, monkeypatch, capsys, words, message):
    monkeypatch.setattr(tool.sys, "argv", ["tiny_ladder.py", *words])
    monkeypatch.setattr(tool.Ladder, "climb", lambda self: pytest.fail("the training started"))

    with pytest.raises(SystemExit):
        tool.main()

    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_quick_ladder_gives_every_rung_the_same_compute(tmp_path):
    command = ["bash", "recipes/tiny_ladder.sh", "--quick", "--out", str(tmp_path / "ladder")]
    environment = os.environ | {"MINDPANGU_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    run = partial(subprocess.run, command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    done = run()

    assert done.returncode == 0, done.stdout + done.stderr
    (rungs,) = json.loads((tmp_path / "ladder" / "result.json").read_text())["seeds"]
    assert list(rungs) == ["base", "tokenizer", "architecture", "inheritance", "rounds"]
    for rung in rungs.values():
        assert rung["compute"] == pytest.approx(rungs["base"]["compute"], rel=0.05)

    assert run().stdout == done.stdout
