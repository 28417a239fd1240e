"""Renamed keys: refused in files and options of a user, translated in files that mindpangu saved."""

from argparse import Namespace
from pathlib import Path

import pytest
import yaml

from mindpangu.cli import config as config_verb
from mindpangu.config import Config, describe_keys, load_config, load_saved_config, refuse_renamed, to_yaml
from mindpangu.config.loader import RENAMED_KEYS
from mindpangu.config.run_folder import RunFolder
from mindpangu.errors import ConfigError

REFUSAL = "key domains.embedding_slots is now called domains.vocabularies"
VOCABULARIES = "[{name: a, vocab_size: 9, domains: [zh]}, {name: b, vocab_size: 7, tokenizer: b.model, domains: [en]}]"


def saved_with_old_keys(config: Config, path: Path) -> Path:
    """Writes a configuration as mindpangu did when the renamed keys had their old names."""
    tree = yaml.safe_load(to_yaml(config))
    tree["domains"]["embedding_slots"] = tree["domains"].pop("vocabularies")
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path


def test_renamed_keys_exist_in_the_schema_under_their_new_names_only():
    keys = {key for key, *_ in describe_keys()}

    assert keys >= set(RENAMED_KEYS.values())
    assert not keys & set(RENAMED_KEYS)


def test_a_renamed_key_moves_inside_its_section():
    # load_saved_config translates the last name only
    for old, new in RENAMED_KEYS.items():
        assert old.rpartition(".")[0] == new.rpartition(".")[0]


@pytest.mark.parametrize("value", ["[]", VOCABULARIES])
def test_a_users_file_with_the_old_key_is_refused(tmp_path, value):
    path = tmp_path / "run.yaml"
    path.write_text(f"domains:\n  names: [zh, en]\n  embedding_slots: {value}\n")

    with pytest.raises(ConfigError, match=REFUSAL):
        load_config(path)


@pytest.mark.parametrize("key", ["domains.embedding_slots[0].name", "domains.embedding_slots.0.name"])
def test_an_item_of_a_renamed_list_is_refused_like_the_list(key):
    with pytest.raises(ConfigError, match=REFUSAL):
        load_config(None, {key: "main"})
    with pytest.raises(ConfigError, match=REFUSAL):
        refuse_renamed(key)


def test_an_override_with_the_old_key_is_refused(tmp_path):
    saved = saved_with_old_keys(load_config(), tmp_path / "config.yaml")

    with pytest.raises(ConfigError, match=REFUSAL):
        load_config(None, {"domains.embedding_slots": VOCABULARIES})
    with pytest.raises(ConfigError, match=REFUSAL):
        load_saved_config(saved, {"domains.embedding_slots": VOCABULARIES})


@pytest.mark.parametrize("value", ["[]", VOCABULARIES])
def test_a_saved_configuration_with_the_old_key_loads_equal_to_the_new_one(tmp_path, value):
    config = load_config(None, {"domains.names": "[zh, en]", "domains.vocabularies": value})
    saved = saved_with_old_keys(config, tmp_path / "config.yaml")

    loaded = load_saved_config(saved)

    assert loaded == config
    assert "embedding_slots" not in to_yaml(loaded)


def test_overrides_win_over_a_translated_key(tmp_path):
    config = load_config(None, {"domains.names": "[zh, en]", "domains.vocabularies": VOCABULARIES})
    saved = saved_with_old_keys(config, tmp_path / "config.yaml")

    loaded = load_saved_config(saved, {"domains.vocabularies": "[]", "training.steps": "12"})

    assert loaded.domains.vocabularies == []
    assert loaded.training.steps == 12


@pytest.mark.parametrize("text", ["", "model:\n  num_layers: 3\n", "domains:\n", "domains: {}\n"])
def test_a_saved_configuration_without_the_old_key_loads_unchanged(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)

    assert load_saved_config(path) == load_config(path)


def test_a_saved_configuration_is_checked_like_any_other(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("domains:\n  embedding_slots: [{nam: a}]\n")

    with pytest.raises(ConfigError, match=r"did you mean domains\.vocabularies\[0\]\.name"):
        load_saved_config(path)


def test_the_config_verb_knows_the_old_name(capsys):
    with pytest.raises(ConfigError, match=REFUSAL):
        config_verb.run(Namespace(keys=False, get="domains.embedding_slots"), load_config())

    config_verb.run(Namespace(keys=True, get=None), load_config())
    listing = capsys.readouterr().out
    assert "--domains.vocabularies " in listing
    assert "Formerly called domains.embedding_slots." in listing


@pytest.mark.parametrize(
    ("name", "neighbour", "expected"),
    [
        ("config.yaml", "metrics.jsonl", True),
        ("config.yaml", "checkpoint/iteration_00000004", True),
        ("config.yaml", "checkpoint/notes.txt", False),
        ("config.yaml", "manifest.json", True),
        ("config.yaml", None, False),
        ("config.yaml", "other.yaml", False),
        ("run.yaml", "metrics.jsonl", False),
    ],
)
def test_a_run_folder_or_a_checkpoint_holds_a_saved_configuration(tmp_path, name, neighbour, expected):
    path = tmp_path / name
    path.write_text("")
    if neighbour is not None:
        (tmp_path / neighbour).parent.mkdir(exist_ok=True)
        (tmp_path / neighbour).touch()

    assert RunFolder.holds(path) is expected
