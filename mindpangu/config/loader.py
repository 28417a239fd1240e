"""From a YAML file and dotted overrides to a checked `Config`, and back to YAML.

Strict: an unknown key, a wrong type, a value out of range or an impossible combination is a `ConfigError`
that names the key, what is allowed and the nearest spelling. Reads files; knows nothing of MindSpore.
"""

import ast
import dataclasses
import difflib
import inspect
import itertools
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mindpangu.config.fields import violation
from mindpangu.config.schema import ARCHITECTURE, Config, ModelConfig
from mindpangu.errors import ConfigError

RENAMED_KEYS = {"domains.embedding_slots": "domains.vocabularies"}
"""Keys that were renamed: old dotted key → new dotted key."""


def load_config(path: str | Path | None = None, overrides: Mapping[str, str] | None = None) -> Config:
    """Reads a configuration that a user wrote.

    Args:
        path: a YAML file, or None for the defaults alone.
        overrides: dotted key → value, e.g. {"training.steps": "200"}. Values are YAML, except for keys of type str,
            which take the text as it is.

    Raises:
        ConfigError: the file cannot be read, or a key or value cannot be used. A key that was renamed is refused, and
            the message gives its new name.
    """
    return _config_from(_read_yaml(Path(path)) if path is not None else {}, overrides)


def load_saved_config(path: str | Path, overrides: Mapping[str, str] | None = None) -> Config:
    """Reads a configuration that mindpangu wrote: into a run folder, a checkpoint, or an export.

    Keys that were renamed since are translated. Arguments and errors are those of `load_config`.
    """
    tree = _read_yaml(Path(path))
    for old, new in RENAMED_KEYS.items():
        *parents, last = old.split(".")
        section: Any = tree
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if isinstance(section, dict) and last in section:
            section[new.split(".")[-1]] = section.pop(last)
    return _config_from(tree, overrides)


def _config_from(tree: dict[str, Any], overrides: Mapping[str, str] | None) -> Config:
    for key, text in (overrides or {}).items():
        _set_dotted(tree, key, _parse_value(key, text))
    config = resolve(_build(Config, tree, ""))
    check(config)
    return config


def resolve(config: Config) -> Config:
    """Replaces every 0 that stands for "derived" by its value, so that a saved configuration is complete."""
    model, training, schedule = config.model, config.training, config.lr_scheduler
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


ONE_PROCESS = {f"parallelism.{kind}_parallel": "1" for kind in ("data", "tensor", "expert")}
"""Overrides for what one process does, whatever the file says that it is given."""


def check(config: Config) -> None:
    """Checks what no single key can tell: combinations. `config` is resolved."""
    model, training, data, parallelism = config.model, config.training, config.data, config.parallelism
    local, replicas = training.local_batch_size, parallelism.data_parallel
    rules = [
        (
            model.hidden_size % model.num_heads == 0,
            f"model.num_heads is {model.num_heads}, which does not divide model.hidden_size {model.hidden_size}",
        ),
        (
            model.position != "rope" or model.hidden_size // model.num_heads % 2 == 0,
            "model.position is rope, which turns pairs of numbers, but model.hidden_size / model.num_heads is "
            f"{model.hidden_size // model.num_heads}",
        ),
        (
            model.shortcut_reduction <= model.hidden_size,
            f"model.shortcut_reduction is {model.shortcut_reduction}, more than model.hidden_size {model.hidden_size}: "
            "nothing is left of the bottleneck",
        ),
        (
            model.rre_layers <= model.num_layers,
            f"model.rre_layers is {model.rre_layers}, more than model.num_layers {model.num_layers}",
        ),
        (
            training.global_batch_size % (local * replicas) == 0,
            f"training.global_batch_size is {training.global_batch_size}, not a multiple of training.local_batch_size "
            f"{local} × parallelism.data_parallel {replicas}",
        ),
        (
            data.schedule != "rotating" or local % data.domains_per_step == 0,
            f"data.domains_per_step is {data.domains_per_step}, which does not divide "
            f"training.local_batch_size {local}, as data.schedule rotating needs",
        ),
        (
            config.lr_scheduler.decay_steps > config.lr_scheduler.warmup_steps,
            f"lr_scheduler.decay_steps is {config.lr_scheduler.decay_steps}, not more than lr_scheduler.warmup_steps "
            f"{config.lr_scheduler.warmup_steps}; with training.steps {training.steps} lower the warm-up",
        ),
        (
            config.lr_scheduler.lr_end <= config.lr_scheduler.learning_rate,
            f"lr_scheduler.lr_end is {config.lr_scheduler.lr_end}, above lr_scheduler.learning_rate "
            f"{config.lr_scheduler.learning_rate}",
        ),
        (
            config.context.device_target != "CPU" or config.context.precision != "bf16",
            f"context.precision is {config.context.precision}; on the CPU only fp32 is allowed, and fp16 "
            "for tests with tiny models (it is slow there); the CPU has no bf16 kernels",
        ),
        (
            len(config.optimizer.betas) == 2 and all(0 <= beta < 1 for beta in config.optimizer.betas),
            f"optimizer.betas is {config.optimizer.betas}; allowed: two numbers >= 0 and < 1",
        ),
        (
            replicas % parallelism.expert_parallel == 0,
            f"parallelism.expert_parallel is {parallelism.expert_parallel}, which does not divide "
            f"parallelism.data_parallel {replicas}: experts are shared by data-parallel ranks",
        ),
        (
            parallelism.expert_parallel == 1 or parallelism.expert_parallel % data.domain_groups == 0,
            f"data.domain_groups is {data.domain_groups}, which does not divide parallelism.expert_parallel "
            f"{parallelism.expert_parallel}: each group of domains is a sub-group of those ranks",
        ),
        (
            training.global_batch_size % (local * data.domain_groups) == 0,
            f"data.domain_groups is {data.domain_groups}, which does not divide the "
            f"{training.global_batch_size // local} micro-batches of a step (training.global_batch_size / "
            "training.local_batch_size)",
        ),
        (
            model.num_heads % parallelism.tensor_parallel == 0
            and model.ffn_hidden_size % parallelism.tensor_parallel == 0
            and model.hidden_size % parallelism.tensor_parallel == 0,
            f"parallelism.tensor_parallel is {parallelism.tensor_parallel}; it has to divide model.num_heads "
            f"{model.num_heads}, model.hidden_size {model.hidden_size} and model.ffn_hidden_size "
            f"{model.ffn_hidden_size}",
        ),
        (
            training.run_name not in ("", ".", "..") and "/" not in training.run_name,
            f"training.run_name is {training.run_name!r}; allowed: the name of one folder",
        ),
    ]
    for holds, message in rules:
        if not holds:
            raise ConfigError(message)


def require_pangu_alpha(config: Config, what: str) -> None:
    """Raises ConfigError unless a model has PanGu-α's parts, of which alone `what` knows."""
    usual = ModelConfig()
    for key in ARCHITECTURE:
        value, known = getattr(config.model, key), getattr(usual, key)
        if value != known:
            raise ConfigError(f"{what} knows PanGu-α's parts only (model.{key} {known}); this model has {value}")


def require_one_process(config: Config, what: str) -> None:
    """Raises ConfigError if a configuration asks for several processes. `what` is done in one: "rounds are trained"."""
    ranks = config.parallelism.data_parallel * config.parallelism.tensor_parallel
    if ranks > 1:
        raise ConfigError(
            f"parallelism asks for {ranks} processes, but {what} in one; give --parallelism.data_parallel 1 "
            "--parallelism.tensor_parallel 1 --parallelism.expert_parallel 1 (a step keeps training.global_batch_size)"
        )


def to_yaml(config: Config) -> str:
    """The configuration as YAML text that `load_config` reads back to an equal object."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def describe() -> Iterator[tuple[str, str, Any, str]]:
    """Yields (dotted key, type, default, docstring) of every key, in the order of the schema."""
    for section in dataclasses.fields(Config):
        defaults, docs = section.default_factory(), _field_docstrings(section.type)
        for item in dataclasses.fields(section.type):
            kind = item.type if not isinstance(item.type, type) else item.type.__name__
            yield f"{section.name}.{item.name}", str(kind), getattr(defaults, item.name), docs[item.name]


def keys_that_differ(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> dict[str, tuple]:
    """Dotted key → (our value, their value) wherever two configuration trees differ."""
    differences: dict[str, tuple] = {}
    for key in sorted(set(ours) | set(theirs)):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            differences |= keys_that_differ(a, b, f"{prefix}{key}.")
        elif a != b:
            differences[prefix + key] = (a, b)
    return differences


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeysLoader)
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} does not exist") from None
    except ConfigError as error:
        raise ConfigError(f"configuration file {path}: {error}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, TypeError) as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"configuration file {path} holds a {type(tree).__name__}; expected sections with keys")
    return tree


class _UniqueKeysLoader(yaml.SafeLoader):
    """YAML silently keeps the last of two equal keys; here that is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        repeated = next((key for key in keys if keys.count(key) > 1), None)
        if repeated is not None:
            raise ConfigError(
                f"key {repeated!r} stands twice in one section (line {node.start_mark.line + 1} and after)"
            )
        return super().construct_mapping(node, deep)


def _is_text(key: str) -> bool:
    """Whether a dotted key takes a string."""
    kind: Any = Config
    for name in key.split("."):
        types = {item.name: item.type for item in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}
        kind = types.get(name)
    return kind is str


def _parse_value(key: str, text: str) -> Any:
    if _is_text(key):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--{key} {text}: not a YAML value: {error}") from None


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
    """Converts a YAML value to the annotated type `kind`; `key` is its dotted name for messages."""
    if dataclasses.is_dataclass(kind):
        return _build_section(kind, value, key)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        if not isinstance(value, list):
            raise ConfigError(f"{key} is {value!r}; expected a list, e.g. [a, b]")
        return [_build(arguments[0], item, f"{key}[{index}]") for index, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{key} is {value!r}; expected name: value pairs, e.g. {{a: 1}}")
        return {str(name): _build(arguments[1], item, f"{key}.{name}") for name, item in value.items()}
    if kind is float and isinstance(value, str):
        value = _scientific(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise ConfigError(f"{key} is {value!r} ({type(value).__name__}); expected {kind.__name__}")
    return value


def _scientific(text: str) -> Any:
    """YAML 1.1 reads 1e-3 (without a dot) as a string; a user means the number."""
    try:
        return float(text)
    except ValueError:
        return text


def _build_section(kind: type, value: Any, key: str) -> Any:
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise ConfigError(f"{key or 'the configuration'} is {value!r}; expected keys of {kind.__name__}")
    known = {item.name: item for item in dataclasses.fields(kind)}
    arguments = {}
    for name, item in value.items():
        dotted = f"{key}.{name}" if key else str(name)
        if dotted in RENAMED_KEYS:
            raise ConfigError(f"key {dotted} is now called {RENAMED_KEYS[dotted]}")
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"; did you mean {f'{key}.' if key else ''}{near[0]}?" if near else ""
            raise ConfigError(f"unknown key {dotted}{hint} (known here: {', '.join(known)})")
        arguments[name] = _build(known[name].type, item, dotted)
        problem = violation(dotted, arguments[name], known[name].metadata)
        if problem:
            raise ConfigError(problem)
    return kind(**arguments)


def _field_docstrings(kind: type) -> dict[str, str]:
    """The string literal under each field of a dataclass; Python itself does not keep these."""
    body = ast.parse(inspect.getsource(kind)).body[0].body
    docs = {}
    for statement, following in itertools.pairwise(body):
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
            docs[statement.target.id] = " ".join(following.value.value.split())
    return docs
