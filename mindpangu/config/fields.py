"""Dataclass fields for configuration keys, with their defaults and their allowed values."""

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 100
_brief.maxlist = _brief.maxdict = 10
brief: Callable[[Any], str] = _brief.repr
"""Returns the repr of a value for a message, shortened if it is long."""


def number(
    default: float, minimum: float | None = None, maximum: float | None = None, above: float | None = None
) -> Any:
    """Declares a number with bounds: `minimum` and `maximum` are inclusive, `above` is an exclusive minimum."""
    return field(default=default, metadata={"minimum": minimum, "maximum": maximum, "above": above})


def choice(default: str, *others: str) -> Any:
    """Declares a string from a fixed set."""
    return field(default=default, metadata={"choices": (default, *others)})


def path(default: str = "") -> Any:
    """Declares a path, in which a leading ~ stands for the home folder."""
    return field(default=default, metadata={"path": True})


def paths(*defaults: str) -> Any:
    """Declares a list of paths or glob patterns; see `path`."""
    return field(default_factory=lambda: list(defaults), metadata={"path": True})


def violation(key: str, value: Any, metadata: Mapping[str, Any]) -> str | None:
    """Returns a message if `value` breaks the rules in a field's `metadata`, else None."""
    choices = metadata.get("choices")
    if choices and value not in choices:
        return f"{key} is {brief(value)}; allowed: {', '.join(choices)}"
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
