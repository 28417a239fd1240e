"""Keys that hold paths: ~ is the home folder in all of them, and in nothing else."""

import dataclasses
import typing

import pytest

from mindpangu.config import Config, load_config, to_yaml
from mindpangu.config.run_folder import RunFolder
from mindpangu.errors import ConfigError

PATHS = {
    "data.corpus": "[~/a/*.jsonl, b.jsonl]",
    "data.tokenizer": "~/a",
    "domains.vocabularies": "[{name: a, tokenizer: ~/a}]",
    "experts.storage_folder": "~/a",
    "routing.table": "~/a",
    "training.output_dir": "~/a",
}
"""Key → a value with ~."""


def path_keys(kind=Config, prefix=""):
    """Yields the dotted keys that the schema declares as paths."""
    for item in dataclasses.fields(kind):
        inner = next(
            (each for each in (item.type, *typing.get_args(item.type)) if dataclasses.is_dataclass(each)), None
        )
        if item.metadata.get("path"):
            yield prefix + item.name
        if inner is not None:
            yield from path_keys(inner, f"{prefix}{item.name}.")


def test_the_schema_declares_its_paths():
    assert sorted(path_keys()) == sorted([*(set(PATHS) - {"domains.vocabularies"}), "domains.vocabularies.tokenizer"])


@pytest.mark.parametrize(("key", "value"), PATHS.items())
def test_a_tilde_is_the_home_folder_in_options_and_files(key, value, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    section, name = key.split(".")
    path = tmp_path / "run.yaml"
    path.write_text(f"{section}: {{{name}: {value if value[0] == '[' else repr(value)}}}\n")

    config = load_config(None, {key: value})

    assert "/home/me/a" in to_yaml(config)
    assert "~" not in to_yaml(config)
    assert load_config(path) == config


def test_a_run_folder_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")

    config = load_config(None, {"training.output_dir": "~/runs", "training.run_name": "~"})

    assert str(RunFolder.from_config(config).root) == "/home/me/runs/~"


def test_an_unknown_home_folder_is_refused():
    with pytest.raises(
        ConfigError, match=r"training\.output_dir is '~nobody-has-it/runs': the home folder ~nobody-has-it"
    ):
        load_config(None, {"training.output_dir": "~nobody-has-it/runs"})
