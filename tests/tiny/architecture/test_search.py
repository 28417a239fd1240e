"""The search with made-up trials: what it writes, what it does not do again; and a real one of a single point."""

import json
from pathlib import Path

import pytest

from mindpangu.config import load_config
from mindpangu.errors import ConfigError, MindPanguError, TrainingError
from mindpangu.tiny.architecture.points import Range, Space
from mindpangu.tiny.architecture.search import (
    PLOT,
    POINTS,
    RESULTS,
    draw_points,
    format_points,
    load_or_draw_points,
    search,
)

SPACE = Space(40_000, Range(2, 6), Range(16, 64), Range(1, 4), head_size=8)


@pytest.fixture
def config(tiny_overrides):
    return load_config(None, tiny_overrides | {"model.rre_layers": "0"})


def said(lines):
    return "\n".join(lines)


def test_points_are_kept_and_another_search_is_refused(config, tmp_path):
    folder, lines = tmp_path / "out", []
    folder.mkdir()
    sample = load_or_draw_points(config, SPACE, 4, 0, folder, lines.append)
    assert "architecture: 4 of" in said(lines)
    assert len(format_points(sample.points).splitlines()) == 5
    assert sample.points == draw_points(config, SPACE, 4, 0, lines.append)
    assert not (folder / POINTS).exists()
    sample.save()
    kept = (folder / POINTS).read_text()
    assert load_or_draw_points(config, SPACE, 4, 0, folder, lines.append).points == sample.points
    assert (folder / POINTS).read_text() == kept
    with pytest.raises(ConfigError, match=r"holds another search \(seed is 0, now 1\)"):
        load_or_draw_points(config, SPACE, 4, 1, folder, lines.append)
    other = load_config(None, {"model.rre_layers": "0", "model.vocab_size": "400"})
    with pytest.raises(ConfigError, match="holds another search"):
        load_or_draw_points(other, SPACE, 4, 0, folder, lines.append)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"parallelism.data_parallel": "2"}, "asks for 2 processes"),
        ({"model.vocab_size": "30"}, "cannot train a tokenizer with model.vocab_size 30"),
        ({"data.corpus": "[nowhere.jsonl]"}, "nowhere.jsonl"),
    ],
)
def test_a_mistake_does_not_keep_the_folder_from_better_options(tiny_overrides, config, tmp_path, wrong, message):
    mistaken = load_config(None, tiny_overrides | {"model.rre_layers": "0"} | wrong)
    sample = load_or_draw_points(mistaken, SPACE, 2, 0, tmp_path / "out", lambda text: None)
    with pytest.raises(MindPanguError, match=message):
        search(mistaken, sample, tmp_path / "out", 1, log=lambda text: None)
    assert load_or_draw_points(config, SPACE, 4, 0, tmp_path / "out", lambda text: None).points


def test_a_point_that_fails_is_named_the_rest_is_ranked_and_only_it_is_tried_again(config, tmp_path, made_up_trials):
    folder, lines = tmp_path / "out", []
    sample = load_or_draw_points(config, SPACE, 4, 0, folder, lines.append)
    points, unlucky = sample.points, sample.points[1].name
    folder.mkdir()
    (folder / f"fail_{unlucky}").touch()
    assert not search(config, sample, folder, 2, log=lines.append)
    assert f"architecture: {unlucky} failed: no luck (full log: {folder / unlucky / 'trial.log'})" in said(lines)
    result = json.loads((folder / RESULTS).read_text())
    assert list(result["failed"]) == [unlucky]
    assert [each["ranks"]["bits_per_byte"] for each in result["points"]] == [1, 2, 3]

    (folder / f"fail_{unlucky}").unlink()
    lines.clear()
    assert search(config, sample, folder, 1, log=lines.append)
    assert made_up_trials(folder) == {point.name: 1 + (point.name == unlucky) for point in points}
    result = json.loads((folder / RESULTS).read_text())
    assert result["failed"] == {}
    depths = [each["depth"] for each in result["points"]]
    assert depths == sorted(depths, reverse=True)  # the made-up loss falls with the depth
    assert len(set(depths)) == 4
    rho = {trait: {measure: each["rho"] for measure, each in of.items()} for trait, of in result["spearman"].items()}
    assert rho["depth"]["bits_per_byte"] == rho["depth"]["decode_tokens_per_s"] == pytest.approx(-1)
    assert rho["width"]["train_tokens_per_s"] == pytest.approx(1)
    assert (folder / PLOT).read_bytes().startswith(b"\x89PNG")
    assert "-1.00 (few points)" in said(lines)


def test_nothing_to_rank_is_an_error(config, tmp_path, made_up_trials):
    sample = load_or_draw_points(config, SPACE, 1, 0, tmp_path / "out", lambda text: None)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"crash_{sample.points[0].name}").touch()
    lines = []
    with pytest.raises(TrainingError, match="every point failed"):
        search(config, sample, tmp_path / "out", 1, log=lines.append)
    assert "its process ended with 1: ValueError: a defect" in said(lines)
    assert not (tmp_path / "out" / RESULTS).exists()


def measures(folder: Path, point) -> dict:
    return json.loads((folder / point.name / "trial.json").read_text())


def test_a_real_point_is_trained_measured_and_not_done_again(config, tmp_path):
    from mindpangu.data import HELDOUT, TokenShards
    from mindpangu.train.callbacks import read_metrics

    sample = load_or_draw_points(config, SPACE, 1, 0, tmp_path / "out", lambda text: None)
    points = sample.points
    assert search(config, sample, tmp_path / "out", 1, log=lambda text: None)
    root = tmp_path / "out" / points[0].name
    found = measures(tmp_path / "out", points[0])
    assert len(read_metrics(root / "metrics.jsonl")) == config.training.steps
    assert {each["domain"] for each in found["heldout"]} == {"zh", "en", "bilingual", "code"}
    shards = TokenShards.open(root / "data")
    for each in found["heldout"]:
        name = each["domain"]
        bits = each["loss"] / 0.6931471805599453 * shards.num_tokens(name, HELDOUT)
        assert each["bits_per_byte"] == pytest.approx(bits / shards.text_bytes(name, HELDOUT))
    assert found["train_tokens_per_s"] > 0
    assert found["decode_tokens_per_s"] > 0
    assert not (root / "checkpoint").exists()
    (root / "trial.log").unlink()
    assert search(config, sample, tmp_path / "out", 1, log=lambda text: None)
    assert not (root / "trial.log").exists()
