"""Files of prompts, and memory sizes."""

import json

import pytest

from mindpangu.errors import GenerationError
from mindpangu.generation.prompts import memory_size, read_prompts


def test_one_prompt_per_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("open the\n\n打开\ndef f():\\n\\treturn '\\\\n'\n", "utf-8")

    assert read_prompts(path, "en") == [("en", "open the"), ("en", "打开"), ("en", "def f():\n\treturn '\\n'")]


def test_records_may_name_their_domain(tmp_path):
    path = tmp_path / "prompts.jsonl"
    records = [{"prompt": "a\nb"}, {"domain": "zh", "prompt": "打开"}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_prompts(path, "en") == [("en", "a\nb"), ("zh", "打开")]

    path.write_text('{"prompt": "a\u2028b\x0bc"}\r\n'.replace("\x0b", "\u0085"), "utf-8")
    assert read_prompts(path, "en") == [("en", "a\u2028b\u0085c")]

    with pytest.raises(GenerationError, match=r"prompts\.jsonl:1 names no domain; give --domain"):
        read_prompts(path, None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "prompts.jsonl:2: it is not JSON"),
        ("[1]", "prompts.jsonl:2: a JSON list, not an object"),
        ('{"prompt": "a", "prompt": "b"}', "prompts.jsonl:2: it has the key 'prompt' twice"),
        ('{"prompt": 3}', 'has neither a "prompt" that is a text nor a "task"'),
        ('{"prompt": "a", "domain": 3}', '"domain" is 3; it must be a name'),
    ],
)
def test_lines_that_are_no_prompts_are_named(tmp_path, line, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n' + line + "\n")

    with pytest.raises(GenerationError, match=message):
        read_prompts(path, "en")


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(GenerationError, match="cannot be read: No such file"):
        read_prompts(tmp_path / "absent.txt", "en")

    (tmp_path / "binary.txt").write_bytes(b"a\n\xff\xff")
    with pytest.raises(GenerationError, match=r"binary\.txt is not UTF-8 \(line 2\)"):
        read_prompts(tmp_path / "binary.txt", "en")


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("500 mb", 5 * 10**8), ("1.5GiB", 3 * 2**29), ("4096", 4096)]
)
def test_memory_sizes_have_units(text, size):
    assert memory_size(text) == size


@pytest.mark.parametrize("text", ["", "two", "-1GB", "2 elephants", "0", "0GB", "1e9", "nanGB", "１GB", "9" * 400])
def test_invalid_sizes_are_refused(text):
    with pytest.raises(GenerationError, match="--expert-memory is"):
        memory_size(text)
