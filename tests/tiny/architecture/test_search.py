"""The search with fake trials: what it writes and what it skips; and a real search of a single point."""

import json

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


def ignore(message):
    pass


def test_points_are_saved_and_read_again(config, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    messages = []

    sample = load_or_draw_points(config, SPACE, 4, 0, folder, messages.append)

    assert "architecture: 4 of" in "\n".join(messages)
    assert len(format_points(sample.points).splitlines()) == 5
    assert sample.points == draw_points(config, SPACE, 4, 0, ignore)
    assert not (folder / POINTS).exists()

    sample.save()
    saved = (folder / POINTS).read_text()

    assert load_or_draw_points(config, SPACE, 4, 0, folder, ignore).points == sample.points
    assert (folder / POINTS).read_text() == saved


def test_another_search_in_the_same_folder_is_refused(config, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    load_or_draw_points(config, SPACE, 4, 0, folder, ignore).save()

    with pytest.raises(ConfigError, match=r"holds another search \(seed is 0, now 1\)"):
        load_or_draw_points(config, SPACE, 4, 1, folder, ignore)
    other = load_config(None, {"model.rre_layers": "0", "model.vocab_size": "400"})
    with pytest.raises(ConfigError, match="holds another search"):
        load_or_draw_points(other, SPACE, 4, 0, folder, ignore)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"parallelism.data_parallel": "2"}, "asks for 2 processes"),
        ({"model.vocab_size": "30"}, "cannot train a tokenizer with model.vocab_size 30"),
        ({"data.corpus": "[nowhere.jsonl]"}, "nowhere.jsonl"),
    ],
)
def test_a_corrected_command_can_use_the_same_folder(tiny_overrides, config, tmp_path, wrong, message):
    mistaken = load_config(None, tiny_overrides | {"model.rre_layers": "0"} | wrong)
    sample = load_or_draw_points(mistaken, SPACE, 2, 0, tmp_path / "out", ignore)

    with pytest.raises(MindPanguError, match=message):
        search(mistaken, sample, tmp_path / "out", 1, log=ignore)

    assert load_or_draw_points(config, SPACE, 4, 0, tmp_path / "out", ignore).points


def test_a_failed_point_is_reported_the_others_are_ranked_and_only_it_is_retried(config, tmp_path, fake_trials):
    folder = tmp_path / "out"
    messages = []
    sample = load_or_draw_points(config, SPACE, 4, 0, folder, ignore)
    unlucky = sample.points[1].name
    folder.mkdir()
    (folder / f"fail_{unlucky}").touch()

    assert not search(config, sample, folder, 2, log=messages.append)

    reported = f"architecture: {unlucky} failed: no luck (full log: {folder / unlucky / 'trial.log'})"
    assert reported in "\n".join(messages)
    result = json.loads((folder / RESULTS).read_text())
    assert list(result["failed"]) == [unlucky]
    assert [each["ranks"]["bits_per_byte"] for each in result["points"]] == [1, 2, 3]

    (folder / f"fail_{unlucky}").unlink()
    messages.clear()
    assert search(config, sample, folder, 1, log=messages.append)

    assert fake_trials(folder) == {point.name: 1 + (point.name == unlucky) for point in sample.points}
    result = json.loads((folder / RESULTS).read_text())
    assert result["failed"] == {}
    depths = [each["depth"] for each in result["points"]]
    assert depths == sorted(depths, reverse=True)  # the fake loss decreases with the depth
    assert len(set(depths)) == 4
    by_depth = result["spearman"]["depth"]
    assert by_depth["bits_per_byte"]["rho"] == by_depth["decode_tokens_per_s"]["rho"] == pytest.approx(-1)
    assert result["spearman"]["width"]["train_tokens_per_s"]["rho"] == pytest.approx(1)
    assert (folder / PLOT).read_bytes().startswith(b"\x89PNG")
    assert "-1.00 (few points)" in "\n".join(messages)


def test_nothing_to_rank_is_an_error(config, tmp_path, fake_trials):
    sample = load_or_draw_points(config, SPACE, 1, 0, tmp_path / "out", ignore)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"crash_{sample.points[0].name}").touch()
    messages = []

    with pytest.raises(TrainingError, match="every point failed"):
        search(config, sample, tmp_path / "out", 1, log=messages.append)

    assert "its process ended with 1: ValueError: a defect" in "\n".join(messages)
    assert not (tmp_path / "out" / RESULTS).exists()


def test_a_real_point_is_trained_and_measured_once(config, tmp_path):
    from mindpangu.data import HELDOUT, TokenShards
    from mindpangu.train.metrics import read_metrics

    sample = load_or_draw_points(config, SPACE, 1, 0, tmp_path / "out", ignore)
    root = tmp_path / "out" / sample.points[0].name

    assert search(config, sample, tmp_path / "out", 1, log=ignore)

    measures = json.loads((root / "trial.json").read_text())
    assert len(read_metrics(root / "metrics.jsonl")) == config.training.steps
    assert {each["domain"] for each in measures["heldout"]} == {"zh", "en", "bilingual", "code"}
    shards = TokenShards.open(root / "data")
    for each in measures["heldout"]:
        name = each["domain"]
        bits = each["loss"] / 0.6931471805599453 * shards.num_tokens(name, HELDOUT)
        assert each["bits_per_byte"] == pytest.approx(bits / shards.text_bytes(name, HELDOUT))
    assert measures["train_tokens_per_s"] > 0
    assert measures["decode_tokens_per_s"] > 0
    assert not (root / "checkpoint").exists()

    (root / "trial.log").unlink()
    assert search(config, sample, tmp_path / "out", 1, log=ignore)
    assert not (root / "trial.log").exists()
