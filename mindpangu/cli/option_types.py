"""Types of command-line options: numbers and paths as `mindpangu.user_input` parses them.

The parser uses them for all options of type int, float, and Path, so that every verb reads these in the same way. This
module also refuses options that an action would ignore.
"""

from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from mindpangu.errors import ConfigError
from mindpangu.user_input import expand_home, parse_integer, parse_number

_Value = TypeVar("_Value")


def _option_type(parse: Callable[[str], _Value]) -> Callable[[str], _Value]:
    """Wraps a parser so that argparse shows the message of its ValueError."""

    def parse_option(text: str) -> _Value:
        try:
            return parse(text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None

    return parse_option


def _parse_path(text: str) -> Path:
    path = Path(expand_home(text))
    # Path drops the dot of ./~x, which would then be a home folder when a saved configuration is read
    return path.absolute() if str(path).startswith("~") else path


glob_pattern = _option_type(expand_home)
"""A pattern of file names, in which a leading ~ stands for the home folder."""

OPTION_TYPES: dict[type, Callable[[str], Any]] = {
    int: _option_type(parse_integer),
    float: _option_type(parse_number),
    Path: _option_type(_parse_path),
}
"""Type of an option → the function that parses it."""


def summary_of(module: ModuleType) -> str:
    """Returns the first line of a verb's description; "" with PYTHONOPTIMIZE=2, which removes docstrings."""
    return (module.__doc__ or "").strip().partition("\n")[0]


def refuse_unused(options: Namespace, user: str, *names: str) -> None:
    """Raises ConfigError if an option was given that the chosen action would ignore.

    Args:
        user: name of the action, e.g. "convert to-pangu-alpha".
        names: names of the options that it ignores, as attributes. Their default must be None or False.
    """
    values = {f"--{name.replace('_', '-')}": getattr(options, name) for name in names}
    given = [name for name, value in values.items() if value is not None and value is not False]
    if given:
        raise ConfigError(f"{user} does not use {' and '.join(given)}; leave {'it' if len(given) == 1 else 'them'} out")
