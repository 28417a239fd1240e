"""Types of command-line options: numbers and paths as `mindpangu.user_input` parses them.

The parser uses them for all options of type int, float, and Path, so that every verb reads these in the same way.
"""

from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

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


glob_pattern = _option_type(expand_home)
"""A pattern of file names, in which a leading ~ stands for the home folder."""

OPTION_TYPES: dict[type, Callable[[str], Any]] = {
    int: _option_type(parse_integer),
    float: _option_type(parse_number),
    Path: _option_type(lambda text: Path(expand_home(text))),
}
"""Type of an option → the function that parses it."""
