"""Names of arrays end in shape letters; ascend_ops/__init__.py has their only legend."""

import ast
import re
from pathlib import Path

import ascend_ops

PROJECT = Path(__file__).parents[1]
LEGEND = dict(re.findall(r"^    ([A-Z])  (.+)$", ascend_ops.__doc__, re.MULTILINE))
_SUFFIX = re.compile(r"^[a-z]\w*_([0-9]*[A-Z][A-Za-z0-9]*)$")


def shape_names(source):
    """Returns the names in a module that end in shape letters."""
    tree = ast.parse(source)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    return {name for name in names if _SUFFIX.match(name)}


def unknown_letters(source):
    return {
        name: letters
        for name in shape_names(source)
        if (letters := set(re.findall("[A-Za-z]", _SUFFIX.match(name)[1])) - LEGEND.keys())
    }


def test_every_shape_letter_is_in_the_legend():
    unknown = {}
    for package in ("mindpangu", "ascend_ops"):
        for path in sorted((PROJECT / package).rglob("*.py")):
            unknown |= {
                f"{path.relative_to(PROJECT)}: {name}": letters
                for name, letters in unknown_letters(path.read_text("utf-8")).items()
            }

    assert unknown == {}


def test_an_unknown_letter_is_noticed():
    source = "def f(x_TW):\n    y_Th = x_TW\n    rows_1P = plain = y_Th.T"

    assert unknown_letters(source) == {"x_TW": {"W"}, "y_Th": {"h"}}
