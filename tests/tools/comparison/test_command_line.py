"""The command line of a comparison is checked before anything is trained."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("compare_tiny_rounds")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.num_layers"], "--model.num_layers has no value"),
        (["--qick"], "unrecognized arguments: --qick"),
        (["--modle.num_layers", "3"], "unknown key modle; did you mean model?"),
        (["--model.num_layers=x"], "model.num_layers is 'x' (str); expected int"),
        (["--config", "nowhere.yaml"], "configuration file nowhere.yaml does not exist"),
        (["--json", "nowhere/figures.json"], "--json nowhere/figures.json: give a file in an existing folder"),
        (["--training.seed", "3"], "--training.seed is set by this comparison itself; leave it out"),
        (["--training.steps=7"], "--training.steps is set by this comparison itself; leave it out"),
        (["--json", "docs"], "--json docs: give a file in an existing folder"),
    ],
)
def test_a_mistake_is_reported_before_anything_is_trained(tool, monkeypatch, capsys, words, message):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(tool.sys, "argv", ["compare_tiny_rounds.py", *words])
    monkeypatch.setattr(tool, "measure", lambda *_: pytest.fail("the training started"))

    with pytest.raises(SystemExit):
        tool.main()

    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("compare_dense_twin", "checkpoint.keep_last"),
        ("compare_upcycling", "data.tokenizer"),
        ("compare_tiny_inheritance", "model.num_heads"),
        ("compare_tiny_inheritance", "lr_scheduler.warmup_steps"),
        ("compare_tiny_rounds", "lr_scheduler.decay_steps"),
        ("lifelong_learning", "data.mixture"),
    ],
)
def test_keys_that_a_comparison_sets_itself_are_refused(load_tool, monkeypatch, capsys, name, key):
    tool = load_tool(name)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(tool.sys, "argv", [name, f"--{key}=1"])

    with pytest.raises(SystemExit):
        tool.main()

    assert f"--{key} is set by this comparison itself; leave it out" in capsys.readouterr().err


def test_overrides_reach_the_runs(tool, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    words = ["--model.num_layers", "3", "--optimizer.betas=[0.8, 0.95]"]
    monkeypatch.setattr(tool.sys, "argv", ["x", "--quick", "--json", str(tmp_path / "figures.json"), *words])
    received = []
    monkeypatch.setattr(tool, "measure", lambda config, overrides, *_: received.append(overrides) or {})
    monkeypatch.setattr(tool, "format_table", lambda *_: "")
    monkeypatch.setattr(tool, "differences", lambda *_: {})

    tool.main()

    assert received == [{"model.num_layers": "3", "optimizer.betas": "[0.8, 0.95]"}]
    assert (tmp_path / "figures.json").exists()
