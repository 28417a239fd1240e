"""YAML 1.2: which words are numbers, what is refused, and the round trip through the dumper."""

import dataclasses
import json
import math
import os
import re
import time
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mindpangu.config import Config, core_yaml, load_config, load_saved_config, to_yaml
from mindpangu.errors import ConfigError

VALUES = {
    "0100": 100,
    "-007": -7,
    "+12": 12,
    "0o100": 64,
    "0x1f": 31,
    "1e-3": 0.001,
    "1e3": 1000.0,
    "1.": 1.0,
    ".5": 0.5,
    "1.0e-05": 1e-5,
    ".inf": math.inf,
    "-.INF": -math.inf,
    "true": True,
    "FALSE": False,
    "null": None,
    "~": None,
    "": None,
    "!!str 100": "100",
    "!!int '0100'": 100,
    **{word: word for word in "no on yes off y N 1:30 1_000 0b1 0o8 0x 0xg 1e 1e+ . + .e3 nan inf tRUE =".split()},
    **{word: word for word in "08:15 2026-11-27 １ ١ -a".split()},
}
"""YAML 1.2 word → value."""

WORDS = st.one_of(
    st.sampled_from([*VALUES, "08", "0o17", "<<", "? a", "- a", "a: b", "a #b", "\ufeff", "\x85", "\u2028", " ", "'"]),
    st.from_regex(r"\A[-+]?[0-9][0-9_:.eExo+-]{0,8}\Z"),
    st.text(max_size=12),
)
"""Texts that one version of YAML or the other may take for something else."""

SCALARS = st.one_of(
    WORDS,
    st.booleans(),
    st.none(),
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.floats(allow_nan=False),
)
TREES = st.recursive(
    SCALARS,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(WORDS, children, max_size=4),
    max_leaves=12,
)


def plain(value: Any) -> Any:
    """Returns what was parsed with numbers instead of `Number`."""
    if isinstance(value, core_yaml.Number):
        return value.value
    if isinstance(value, list):
        return [plain(item) for item in value]
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def same(first: Any, second: Any) -> bool:
    """True if two values are equal and of the same types."""
    return repr(first) == repr(second)


@pytest.mark.parametrize(("word", "value"), VALUES.items())
def test_words_are_read_as_in_yaml_1_2(word, value):
    assert same(plain(core_yaml.parse(word)), value)
    assert same(plain(core_yaml.parse(f"- {word}\n- k: {word}\n")), [value, {"k": value}])


@pytest.mark.parametrize("word", ["no", "on", "1", "007", "1e3", "true", "null", "~", "1:30", "2026-11-27"])
def test_keys_are_text_as_written(word):
    assert list(core_yaml.parse(f"{word}: 1")) == [word]
    assert list(core_yaml.parse(f"{{{word}: 1}}")) == [word]


@given(TREES)
@settings(deadline=None)
def test_what_is_dumped_reads_back_equal_in_both_versions(tree):
    text = core_yaml.dump(tree)

    assert same(plain(core_yaml.parse(text)), tree)
    assert same(yaml.safe_load(text), tree)


def could_be_saved(text: str) -> bool:
    """True if a path could be saved by an older version, which lost the line breaks of Unicode."""
    return not re.search("[\0\x85\u2028\u2029]", text) and not text.startswith("~")


@given(texts=st.lists(WORDS.filter(could_be_saved), min_size=1))
@example(texts=["1e3"])
@example(texts=["08"])
@example(texts=["0o17"])
@settings(deadline=None)
def test_texts_in_configurations_that_older_versions_saved_are_read_as_they_were(texts, tmp_path_factory):
    saved = {"data": {"corpus": texts, "tokenizer": texts[0]}, "domains": {"experts": {texts[0]: 2}}}
    path = tmp_path_factory.mktemp("older") / "config.yaml"
    path.write_text(yaml.safe_dump(saved, sort_keys=False, allow_unicode=True), "utf-8")

    config = load_saved_config(path)

    assert config.data.corpus == texts
    assert config.data.tokenizer == texts[0]
    assert config.domains.experts == {texts[0]: 2}
    path.write_text(to_yaml(config), "utf-8")
    assert load_saved_config(path) == config


@given(rate=st.floats(min_value=1e-300, max_value=1e300), steps=st.integers(1, 2**62))
@settings(deadline=None)
def test_numbers_in_configurations_that_older_versions_saved_are_read_as_they_were(rate, steps, tmp_path_factory):
    saved = dataclasses.asdict(Config())
    saved["lr_scheduler"] |= {"learning_rate": rate, "lr_end": 0.0, "warmup_steps": 0}
    saved["training"]["steps"] = steps
    path = tmp_path_factory.mktemp("older") / "config.yaml"
    path.write_text(yaml.safe_dump(saved), "utf-8")

    config = load_saved_config(path)

    assert (config.lr_scheduler.learning_rate, config.training.steps) == (rate, steps)


@given(nesting=st.lists(st.sampled_from(["[{}]", "{{outer: {}}}"]), max_size=8), key=WORDS)
@settings(deadline=None)
def test_a_key_that_appears_twice_is_refused_at_every_depth(nesting, key):
    quoted = '"' + "".join(f"\\U{ord(character):08x}" for character in key) + '"'
    text = f"{{{quoted}: 1, other: 2, {quoted}: 3}}"
    for outer in nesting:
        text = outer.format(text)

    with pytest.raises(ValueError, match="appears twice in one section"):
        core_yaml.parse(text)


@pytest.mark.parametrize("mapping", ["{zh: 1, zh: 5}", "{zh: 1, 'zh': 5}", "{1: 1, '1': 1}", "zh: 1\nzh: 5"])
def test_a_key_that_appears_twice_is_refused_in_files_and_overrides(mapping, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data:\n  mixture:\n" + "".join(f"    {line}\n" for line in mapping.splitlines()))

    with pytest.raises(ConfigError, match=r"run\.yaml: line \d: key '(zh|1)' appears twice .* begins at line 3"):
        load_config(path)
    with pytest.raises(ConfigError, match=r"--data\.mixture .* appears twice"):
        load_config(None, {"data.mixture": mapping})


HOSTILE = {
    "many keys": ("data:\n  mixture:\n" + "".join(f"    k{index}: 1\n" for index in range(40_000)), "10,000 keys"),
    "many items": ("[" + "a, " * 300_000 + "]", "10,000 keys"),
    "a long list of long lines": ("- a\n" * 250_000, "10,000 keys"),
    "deep lists": ("[" * 500_000, "nested more than 32 deep"),
    "deep mappings": ("{a: " * 200_000, "nested more than 32 deep"),
    "deep lists on one line": ("- " * 500_000, "nested more than 32 deep"),
    "deep blocks": ("\n".join(" " * depth + "a:" for depth in range(1000)), "nested more than 32 deep"),
    "multiplied anchors": (
        "a: &a0 [x]\n" + "".join(f"b{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)),
        "10,000 keys",
    ),
    "anchors in anchors": (
        "a: &a0 [x]\n" + "".join(f"b{i}: &a{i} [[[[[*a{i - 1}]]]]]\n" for i in range(1, 30)),
        "nested more than 32 deep",
    ),
    "an anchor in itself": ("&a [*a]", r"alias \*a is inside"),
    "an anchor in itself, as a key": ("&a {b: {*a : 1}}", r"alias \*a is inside"),
    "an unknown anchor": ("*a", "undefined alias 'a'"),
    "a large file": ("#" * 2_000_000, "1,048,576"),
    "a long key": ("? " + "k" * 5000 + "\n: 1", "at most 1,024 characters"),
    "a list as a key": ("{[a]: 1}", "a key is not a name"),
    "a merge key": ("a: &a {b: 1}\nc: {<<: *a}", "merge keys"),
    "a Python object": ("!!python/object/apply:os.getcwd []", "the tag !!python/object/apply:os.getcwd"),
    "a set": ("!!set {a, b}", "the tag !!set"),
    "a number that is none": ("!!int x", "'x' is not of the kind int"),
    "two documents": ("a: 1\n---\nb: 1", "another document"),
    "a control character": ("a: \x07", "special characters are not allowed"),
    "blanks": (" " * 1_000_000 + "\t[", "line 1"),
    "empty lines": ("\n" * 1_000_000 + "[", "line 1000001"),
}


@pytest.mark.parametrize(("text", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml_ends_soon_in_one_message(text, message, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text, "utf-8")
    start = time.process_time()

    with pytest.raises(ConfigError, match=rf"run\.yaml[^\n]*{message}[^\n]*$"):
        load_config(path)
    with pytest.raises(ConfigError, match=message) as refusal:
        load_config(None, {"data.mixture": text})

    assert len(str(refusal.value)) < 500
    assert time.process_time() - start < 20  # about 1 s


@given(st.text())
@settings(deadline=None)
def test_any_text_is_read_or_refused_in_one_message(text):
    try:
        core_yaml.parse(text)
        message = ""
    except ValueError as error:
        message = str(error)

    assert "\n" not in message


def test_aliased_sections_are_separate_values(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data:\n  mixture: &weights {zh: 1, en: 1}\n  phases: [{steps: 3, mixture: *weights}]\n")

    config = load_config(path, {"data.mixture.zh": "5"})

    assert config.data.mixture == {"zh": 5.0, "en": 1.0}
    assert config.data.phases[0].mixture == {"zh": 1.0, "en": 1.0}


NAMES = [
    "\udcb2\udce2.jsonl",
    "😀/a.jsonl",
    "😀\udcff",
    "a\x85b",
    "a\u2028b",
    "a\nb",
    "a\x1b[31m",
    "a: b #c",
    "[1]",
    "~x",
]
"""Names of files: not UTF-8, above U+FFFF, with line breaks, with control characters, and with YAML's own."""


@pytest.mark.parametrize("name", NAMES)
def test_names_of_any_bytes_are_dumped_and_read_back(name):
    for value in (name, [name], {name: [name]}):
        assert core_yaml.parse(core_yaml.dump(value)) == value
        core_yaml.dump(value).encode("utf-8")  # it can be saved
    assert load_config(None, {"data.corpus": core_yaml.dump([f"/{name}"])}).data.corpus == [f"/{name}"]


def test_a_name_that_is_not_utf8_is_given_as_an_option():
    name = os.fsdecode("测试".encode("gbk"))

    config = load_config(None, {"data.corpus": f"[{name}.jsonl, '{name}']", "training.run_name": name})

    assert config.data.corpus == [f"{name}.jsonl", name]
    assert config.training.run_name == name


def test_a_character_may_be_spelled_as_in_json():
    assert core_yaml.parse(json.dumps(["😀", "中"])) == ["😀", "中"]


@pytest.mark.parametrize("half", ["d800", "dbff", "dc00", "dc7f", "dd00", "dfff"])
def test_a_lone_surrogate_is_refused(half):
    for text in (f'"a\\u{half}"', f'"\\u{half}": 1', f'["\\u{half}\\u{half}"]'):
        with pytest.raises(ValueError, match=rf"line 1: '\\u{half}' is not a character"):
            core_yaml.parse(text)
    with pytest.raises(ValueError, match="special characters are not allowed"):
        core_yaml.parse(f"a{chr(int(half, 16))}")
