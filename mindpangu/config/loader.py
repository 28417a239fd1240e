"""Loads a YAML file and dotted overrides into a checked `Config`, and writes a `Config` back to YAML.

Files and overrides are YAML 1.2 (`core_yaml.py`). Loading is strict: an unknown key, a wrong type, a value out of
range, or an impossible combination raises a `ConfigError` that names the key, the allowed values, and the nearest
spelling. Nothing here depends on MindSpore.
"""

import ast
import dataclasses
import difflib
import inspect
import itertools
import math
import os
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mindpangu.config import core_yaml
from mindpangu.config.checks import check
from mindpangu.config.core_yaml import MAX_CHARACTERS, Number
from mindpangu.config.fields import violation
from mindpangu.config.schema import Config, ModelConfig
from mindpangu.display import short_repr
from mindpangu.errors import ConfigError
from mindpangu.untrusted import read_bytes, read_user_file
from mindpangu.user_input import INTEGER_LIMIT, decode_text, expand_home

RENAMED_KEYS = {"domains.embedding_slots": "domains.vocabularies"}
"""Old dotted key → new dotted key in the same section."""

_PROJECT = Path(__file__).resolve().parents[2]
_MAX_TEXT = 4096  # characters, as Linux allows for a path


def load_config(path: str | Path | None = None, overrides: Mapping[str, str] | None = None) -> Config:
    """Loads a configuration that a user wrote.

    Args:
        path: a YAML file or a pipe, which `find_file` looks for, or None to start from the defaults.
        overrides: dotted key → value, e.g. {"training.steps": "200"}. Values are YAML, except for keys of type str,
            whose text is taken verbatim.

    Raises:
        ConfigError: the file cannot be read, or a key or value is invalid. A renamed key is refused with a message
            that gives its new name.
    """
    return _config_from(_read_yaml(Path(path), read_user_file) if path is not None else {}, overrides)


def load_saved_config(path: str | Path, overrides: Mapping[str, str] | None = None) -> Config:
    """Loads a configuration that mindpangu wrote to a run folder or a checkpoint.

    Keys that have been renamed since are translated. Otherwise like `load_config`.
    """
    tree = _read_yaml(Path(path), partial(read_bytes, follow_link=True))
    for old, new in RENAMED_KEYS.items():
        section_name, last = old.split(".")
        section = tree.get(section_name)
        if isinstance(section, dict) and last in section:
            section[new.split(".")[-1]] = section.pop(last)
    return _config_from(tree, overrides)


def find_file(path: str | Path) -> Path:
    """Returns the path of a configuration file, relative to the current directory or else to the project folder.

    Raises:
        ConfigError: the file exists in neither. The message names both folders.
    """
    for candidate in (Path(path), _PROJECT / path):
        if os.path.exists(candidate):
            return candidate
    if Path(path).is_absolute():
        raise ConfigError(f"configuration file {path} does not exist")
    raise ConfigError(
        f"configuration file {path} does not exist; looked in {Path.cwd()} and in the project folder {_PROJECT}"
    )


def _config_from(tree: dict[str, Any], overrides: Mapping[str, str] | None) -> Config:
    for key, text in (overrides or {}).items():
        _set_dotted(tree, key, _parse_value(key, text))
    config = resolve(_build(Config, tree, ""))
    check(config)
    return config


def resolve(config: Config) -> Config:
    """Replaces every 0 that means "derived" with its value, so that a saved configuration is complete."""
    model = config.model
    training = config.training
    schedule = config.lr_scheduler
    replicas = config.parallelism.data_parallel
    return dataclasses.replace(
        config,
        model=dataclasses.replace(model, ffn_hidden_size=model.ffn_hidden_size or _usual_ffn_hidden_size(model)),
        training=dataclasses.replace(
            training, global_batch_size=training.global_batch_size or training.local_batch_size * replicas
        ),
        lr_scheduler=dataclasses.replace(schedule, decay_steps=schedule.decay_steps or training.steps),
    )


def _usual_ffn_hidden_size(model: ModelConfig) -> int:
    if model.activation != "swiglu":
        return 4 * model.hidden_size
    return -(-8 * model.hidden_size // (3 * 8)) * 8


def refuse_renamed(key: str) -> None:
    """Raises a ConfigError that gives the new name if a dotted key, or what it is an item of, has been renamed."""
    for old, new in RENAMED_KEYS.items():
        if key == old or key.startswith((f"{old}.", f"{old}[")):
            raise ConfigError(f"key {old} is now called {new}")


def to_yaml(config: Config) -> str:
    """Returns the configuration as YAML text, which `load_config` reads back to an equal object."""
    return core_yaml.dump(dataclasses.asdict(config))


def is_saved_config(path: Path) -> bool:
    """True if a file looks like the output of `to_yaml`: every section exactly once, and nothing else (no comments)."""
    try:
        lines = read_bytes(path, MAX_CHARACTERS).decode("utf-8").splitlines()
    except (OSError, ValueError):
        return False
    beginnings = [line for line in lines if line and not line.startswith(" ")]
    return sorted(beginnings) == sorted(f"{section.name}:" for section in dataclasses.fields(Config))


def to_result_inputs(config: Config) -> dict[str, Any]:
    """Returns the configuration as nested dictionaries with the oldest name of every key.

    Result files store this form, so that results of earlier versions still match.
    """
    tree = dataclasses.asdict(config)
    for old, new in RENAMED_KEYS.items():
        section, last = new.split(".")
        tree[section][old.split(".")[-1]] = tree[section].pop(last)
    return tree


def describe_keys() -> Iterator[tuple[str, str, Any, str]]:
    """Yields (dotted key, type or choices, default, docstring) for every key, in the order of the schema."""
    config = Config()
    for section in dataclasses.fields(config):
        defaults = getattr(config, section.name)
        docs = _field_docstrings(type(defaults))
        for item in dataclasses.fields(defaults):
            choices = item.metadata.get("choices")
            if choices:
                kind = " | ".join(choices)
            elif isinstance(item.type, type) and not typing.get_args(item.type):
                kind = item.type.__name__
            else:
                kind = str(item.type).replace("mindpangu.config.schema.", "")
            yield f"{section.name}.{item.name}", kind, getattr(defaults, item.name), docs[item.name]


def keys_that_differ(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> dict[str, tuple]:
    """Returns dotted key → (our value, their value) wherever two configuration trees differ."""
    differences: dict[str, tuple] = {}
    for key in sorted(set(ours) | set(theirs)):
        a = ours.get(key)
        b = theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            differences |= keys_that_differ(a, b, f"{prefix}{key}.")
        elif a != b:
            differences[prefix + key] = (a, b)
    return differences


def _read_yaml(path: Path, read: Callable[[Path, int], bytes]) -> dict[str, Any]:
    path = find_file(path)
    try:
        tree = core_yaml.parse(decode_text(read(path, MAX_CHARACTERS)))
    except OSError as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"configuration file {path}: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"configuration file {path} contains {short_repr(tree)}; expected sections with keys")
    return tree


def _is_text(key: str) -> bool:
    """True if the value of a dotted key is a string."""
    kind: Any = Config
    for name in key.split("."):
        types = {item.name: item.type for item in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}
        kind = types.get(name)
    return kind is str


def _parse_value(key: str, text: str) -> Any:
    if _is_text(key):
        return text
    try:
        return core_yaml.parse(text)
    except ValueError as error:
        raise ConfigError(f"--{key} {short_repr(text)} is not a YAML value: {error}") from None


def _set_dotted(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if child is None:
            child = tree[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"--{key}: {parent} is a single value, not a section")
        tree = child
    tree[last] = value


def _build(kind: Any, value: Any, key: str) -> Any:
    """Converts a YAML value to the annotated type `kind`. `key` is its dotted name for messages."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _build_section(kind, value, key)
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin is list:
        if not isinstance(value, list):
            raise ConfigError(f"{key} is {short_repr(value)}; expected a list, e.g. [a, b]")
        return [_build(arguments[0], item, f"{key}[{index}]") for index, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{key} is {short_repr(value)}; expected name: value pairs, e.g. {{a: 1}}")
        return {name: _build(arguments[1], item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, Number):
        value = value.text if kind is str else value.value
    if isinstance(value, str) and (len(value) > _MAX_TEXT or "\0" in value):
        raise ConfigError(f"{key} is {short_repr(value)}; allowed: at most {_MAX_TEXT:,} characters, none of them NUL")
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ConfigError(f"{key} is {short_repr(value)} ({type(value).__name__}); expected {kind.__name__}")
    if kind is int and abs(value) >= INTEGER_LIMIT:
        raise ConfigError(f"{key} is {value}; allowed: integers below 2^63")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{key} is {value}; allowed: a finite number")
    return value


def _build_section(kind: type, value: Any, key: str) -> Any:
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise ConfigError(f"{key or 'the configuration'} is {short_repr(value)}; expected keys of {kind.__name__}")
    known = {item.name: item for item in dataclasses.fields(kind)}
    arguments = {}
    for name, item in value.items():
        dotted = f"{key}.{name}" if key else name
        refuse_renamed(dotted)
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            prefix = f"{key}." if key else ""
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise ConfigError(f"unknown key {dotted}{hint} (known here: {', '.join(known)})")
        arguments[name] = _build(known[name].type, item, dotted)
        problem = violation(dotted, arguments[name], known[name].metadata)
        if problem:
            raise ConfigError(problem)
        if known[name].metadata.get("path"):
            arguments[name] = _expand(dotted, arguments[name])
    return kind(**arguments)


def _expand(key: str, value: Any) -> Any:
    """Replaces ~ in a path or in a list of paths."""
    try:
        return [expand_home(item) for item in value] if isinstance(value, list) else expand_home(value)
    except ValueError as error:
        raise ConfigError(f"{key} is {short_repr(value)}: {error}") from None


def _field_docstrings(kind: type) -> dict[str, str]:
    """Returns field name → the string literal under it in the source. Python does not keep these at run time."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for statement, following in itertools.pairwise(definition.body):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = " ".join(text.split())
    return docs
