"""Print the resolved configuration, one of its values, or all keys with their meaning."""

import argparse
from dataclasses import fields, is_dataclass
from typing import Any

from mindpangu.config import Config, describe_keys, refuse_renamed, to_yaml
from mindpangu.config.run_folder import RunFolder
from mindpangu.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--get", metavar="KEY", help="Print the value of this dotted key, or of run_folder.")
    what.add_argument(
        "--keys", action="store_true", help="List every key with its type or its choices, its default, and its meaning."
    )


def run(options: argparse.Namespace, config: Config) -> None:
    if options.keys:
        for key, kind, default, meaning in describe_keys():
            print(f"--{key}  ({kind}, default {default!r})\n    {meaning}")
    elif options.get == "run_folder":
        print(RunFolder.from_config(config).root)
    elif options.get:
        refuse_renamed(options.get)
        print(_value(config, options.get))
    else:
        print(to_yaml(config), end="")


def _value(config: Config, key: str) -> Any:
    """Returns the value of a dotted key, or of a section. Raises ConfigError for an unknown key."""
    value: Any = config
    for name in key.split("."):
        if not is_dataclass(value) or all(name != item.name for item in fields(value)):
            raise ConfigError(f"unknown key {key}; `mindpangu config --keys` lists them")
        value = getattr(value, name)
    return value
