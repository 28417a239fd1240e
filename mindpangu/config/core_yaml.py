"""Reads and writes YAML 1.2 with its core schema, on top of PyYAML's parser.

PyYAML follows YAML 1.1, in which 0100 is 64, 1:30 is 90, and no is False. The versions differ in which plain scalars
are numbers, booleans, or null. PyYAML takes this from a table of patterns; the table below is that of YAML 1.2. Using
another parser (ruamel.yaml) would add a dependency just for this table.

Keys are always text, because every key of a configuration is a name. A key that appears twice is refused at any depth.
"""

import re
from dataclasses import dataclass
from typing import Any

import yaml

from mindpangu.user_input import INTEGER, NUMBER

MAX_CHARACTERS = 1 << 20
MAX_NODES = 10_000
"""Maximum number of keys and values. An alias counts as everything that it refers to."""
MAX_DEPTH = 32

MAX_KEY = 1024
"""Maximum number of characters of a key; YAML itself has this limit for most keys."""

_MAX_DIGITS = 40  # Python takes quadratic time for a long integer, and cannot print a very long one

_LINE_BREAK = re.compile("[\x85\u2028\u2029]")
_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_UNREADABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\udc80-\udcff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that YAML does not allow. U+DC80 to U+DCFF stand for bytes of file names that are not UTF-8 (PEP 383)."""

_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "null": re.compile(r"null|Null|NULL|~|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(rf"{INTEGER.pattern}|0o[0-7]+|0x[0-9a-fA-F]+"),
    "float": re.compile(rf"{NUMBER.pattern}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
}
"""Kind → pattern of its plain scalars. The first matching kind wins; any other plain scalar is a string."""


@dataclass(frozen=True)
class Number:
    """A number with its spelling, which is used where text is expected: a run may be called 007."""

    value: int | float
    text: str

    def __repr__(self) -> str:
        return self.text


def parse(text: str) -> Any:
    """Returns the value of a YAML text: str, bool, None, `Number`, or lists and dictionaries of them.

    Raises:
        ValueError: the text is not YAML, is too large, or has a key twice. The message gives the line.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it has more than {MAX_CHARACTERS:,} characters")
    try:
        node = _Loader(text).get_single_node()
        return None if node is None else _value(node, depth=1)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ValueError((f"line {mark.line + 1}: " if mark else "") + (error.problem or str(error))) from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def dump(value: Any) -> str:
    """Returns YAML text that reads back equal, under YAML 1.2 and YAML 1.1."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _kind(scalar: str) -> str:
    """Returns the kind of a plain scalar."""
    return next((kind for kind, pattern in _SCALARS.items() if pattern.fullmatch(scalar)), "str")


class _Loader(yaml.SafeLoader):
    """Composes nodes: scalars, sequences, and mappings with their tags. Stops reading as soon as there are too many."""

    NON_PRINTABLE = _UNREADABLE  # type: ignore[misc]  # final in the stubs only

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._num_nodes = 0
        self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode and implicit[0]:
            return _TAG + _kind(value)
        return super().resolve(kind, value, implicit)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        before = self._num_nodes
        self._num_nodes += 1
        self._depth += 1
        self._require_small(event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if node not in self._sizes:
                raise _error(event, f"the alias *{event.anchor} is inside the node that it refers to")
            self._num_nodes = before + self._sizes[node]
            self._require_small(event)
        elif node is not None:
            self._sizes[node] = self._num_nodes - before
        return node

    def _require_small(self, event: yaml.Event) -> None:
        if self._depth > MAX_DEPTH:
            raise _error(event, f"nested more than {MAX_DEPTH} deep")
        if self._num_nodes > MAX_NODES:
            raise _error(event, f"more than {MAX_NODES:,} keys and values")


class _Dumper(yaml.SafeDumper):
    """Quotes strings that YAML 1.2 or YAML 1.1 would not read as strings."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode and implicit[0] and _kind(value) != "str":
            return _TAG + _kind(value)
        return super().resolve(kind, value, implicit)

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Quotes texts with Unicode's line breaks, so that these are escaped; PyYAML would read them as blanks."""
        return self.represent_scalar(f"{_TAG}str", text, style='"' if _LINE_BREAK.search(text) else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def _value(node: yaml.Node, depth: int) -> Any:
    kind = node.tag.removeprefix(_TAG)
    if depth > MAX_DEPTH:  # aliases can nest more deeply than the text
        raise _error(node, f"nested more than {MAX_DEPTH} deep")
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return _mapping(node, depth)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_value(item, depth + 1) for item in node.value]
    if isinstance(node, yaml.ScalarNode) and kind in ("str", *_SCALARS):
        return _scalar(node, kind)
    raise _error(node, f"the tag {node.tag.replace(_TAG, '!!')[:40]} is not supported here")


def _mapping(node: yaml.MappingNode, depth: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or len(key.value) > MAX_KEY:
            raise _error(key, f"a key is not a name; allowed: text of at most {MAX_KEY:,} characters")
        name = _text(key)
        if name == "<<" and key.style is None:
            raise _error(key, "merge keys (<<) belong to YAML 1.1; write out the keys instead")
        if name in result:
            section = f"in one section, which begins at line {node.start_mark.line + 1}"
            raise _error(key, f"key {name!r} appears twice {section}")
        result[name] = _value(value, depth + 1)
    return result


def _scalar(node: yaml.ScalarNode, kind: str) -> str | bool | Number | None:
    text = node.value
    if kind == "str":
        return _text(node)
    if not _SCALARS[kind].fullmatch(text):  # the tag is written out, e.g. !!int x
        raise _error(node, f"{text[:40]!r} is not of the kind {kind}")
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if len(text) > _MAX_DIGITS:
        raise _error(node, f"the number {text[:20]}… has {len(text):,} digits; allowed: {_MAX_DIGITS}")
    if kind == "float":
        return Number(float(text.lower().replace(".inf", "inf").replace(".nan", "nan")), text)
    return Number(int(text, 0) if text[:2] in ("0o", "0x") else int(text), text)


def _text(node: yaml.ScalarNode) -> str:
    """Returns the text of a scalar. JSON escapes a character above U+FFFF as a surrogate pair (\\ud83d\\ude00), which
    PyYAML would leave as two characters."""
    text = _SURROGATE_PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), node.value)
    if half := _LONE_SURROGATE.search(text):
        raise _error(node, f"{half[0]!a} is not a character")
    return text


def _error(item: Any, problem: str) -> yaml.MarkedYAMLError:
    """Returns an error that points at the beginning of a node or an event."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=item.start_mark)
