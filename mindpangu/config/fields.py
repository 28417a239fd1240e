"""Dataclass fields for configuration keys, with their defaults and their allowed values."""

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from mindpangu.display import short_repr

IS_PATH = {"path": True}
"""Metadata of a key that holds a path or a list of paths; see `path`."""


def number(
    default: float, minimum: float | None = None, maximum: float | None = None, above: float | None = None
) -> Any:
    """Declares a number with bounds: `minimum` and `maximum` are inclusive, `above` is an exclusive minimum."""
    return field(default=default, metadata={"minimum": minimum, "maximum": maximum, "above": above})


def choice(default: str, *others: str) -> Any:
    """Declares a string from a fixed set."""
    return field(default=default, metadata={"choices": (default, *others)})


def path(default: str = "") -> Any:
    """Declares a path. A leading ~ stands for the home folder."""
    return field(default=default, metadata=IS_PATH)


def violation(key: str, value: Any, metadata: Mapping[str, Any]) -> str | None:
    """Returns a message if `value` breaks the rules in a field's `metadata`, else None."""
    choices = metadata.get("choices")
    if choices and value not in choices:
        return f"{key} is {short_repr(value)}; allowed: {', '.join(choices)}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    rules = {
        ">=": (metadata.get("minimum"), lambda bound: value >= bound),
        ">": (metadata.get("above"), lambda bound: value > bound),
        "<=": (metadata.get("maximum"), lambda bound: value <= bound),
    }
    rules = {sign: rule for sign, rule in rules.items() if rule[0] is not None}
    if all(holds(bound) for bound, holds in rules.values()):
        return None
    return f"{key} is {value}; allowed: " + " and ".join(f"{sign} {bound}" for sign, (bound, _) in rules.items())
