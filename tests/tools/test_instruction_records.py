"""The converters, on tiny files in the publishers' formats, files in other formats, and the real files if present."""

import json
import sys
from pathlib import Path

import pytest

from mindpangu.config import Config
from mindpangu.data.instruction import instruction_parts
from mindpangu.domains import build_domains

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("instruction_records")


@pytest.fixture
def convert(tool, tmp_path, monkeypatch):
    """Returns convert(kind, source, *options) → records. A mistake raises SystemExit."""

    def run(kind, source, *options):
        out = tmp_path / "out.jsonl"
        monkeypatch.setattr(sys, "argv", ["instruction_records.py", kind, str(source), str(out), *options])
        tool.main()
        return [json.loads(line) for line in out.read_text("utf-8").splitlines()]

    return run


def written(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1), "utf-8")
    return path


def without_origin(records):
    return [{key: value for key, value in record.items() if key not in ("source", "doc")} for record in records]


def test_turns_of_kdconv_become_dialogues(convert, tmp_path):
    def dialogue(*texts):
        return {"name": "x", "messages": [{"message": text, "attrs": []} for text in texts]}

    source = written(tmp_path / "dev.json", [dialogue("一", "二", "三", "四", "五", "六", "七"), dialogue("甲", "乙")])

    records = convert("kdconv", source)
    short_records = convert("kdconv", source, "--turns", "2", "--domain", "en")

    common = {"domain": "zh", "task": "dialogue"}
    assert without_origin(records) == [
        common | {"turns": ["一", "二", "三", "四"]},
        common | {"turns": ["五", "六"]},  # the last text has no reply
        common | {"turns": ["甲", "乙"]},
    ]
    assert [(record["source"], record["doc"]) for record in records] == [("dev.json", doc) for doc in "112"]
    assert without_origin(short_records)[1] == {"domain": "en", "task": "dialogue", "turns": ["三", "四"]}


def test_lccc_is_read_in_both_its_formats(convert, tmp_path):
    dialogues = [["我 饿 了 。", "T . T 去 KFC 吃"], ["你 好", "好 ！", "走"]]
    expected = [["我饿了。", "T . T去KFC吃"], ["你好", "好！"]]

    for value in (dialogues, {"train": dialogues[:1], "test": dialogues[1:], "valid": []}):
        records = convert("lccc", written(tmp_path / "lccc.json", value))
        assert [record["turns"] for record in records] == expected


def test_tatoeba_gives_both_directions_and_keeps_a_sentence_together(convert, tmp_path):
    source = written(tmp_path / "cmn.txt", "Hi.\t嗨。\nHi.\t你好。\tCC-BY 2.0 (France)\n\nRun.\t跑。\n")

    records = convert("tatoeba", source)

    common = {"source": "cmn.txt", "doc": "Hi.", "domain": "bilingual", "task": "translation"}
    assert len(records) == 6
    assert records[2] == common | {"from": "en", "to": "zh", "text": "Hi.", "translation": "你好。"}
    assert records[3] == common | {"from": "zh", "to": "en", "text": "你好。", "translation": "Hi."}


def test_mbpp_is_read_in_both_its_formats(convert, tmp_path):
    tests = ["assert f(1) == 2", "assert f(2) == 3"]
    full = {"text": "Add one. ", "code": "def f(x):\r\n\treturn x + 1\r\n", "task_id": 1, "test_list": tests}
    sanitized = {"prompt": "Add one.", "code": "def f(x):\n\treturn x + 1", "task_id": 1, "test_list": tests}
    expected = {
        "domain": "code",
        "task": "code",
        "lang": "python",
        "instruction": "Add one.\nassert f(1) == 2",
        "answer": "def f(x):\n\treturn x + 1",
    }

    for source in (
        written(tmp_path / "mbpp.jsonl", json.dumps(full) + "\n"),
        written(tmp_path / "sanitized.json", [sanitized]),
    ):
        assert without_origin(convert("mbpp", source)) == [expected]

    assert without_origin(convert("mbpp", source, "--tests", "0"))[0]["instruction"] == "Add one."


def test_alpaca_and_its_seed_tasks_become_questions(convert, tmp_path):
    items = [
        {"instruction": "翻译", "input": "cat", "output": "猫"},
        {"instruction": "Say hello.", "input": "", "output": "Hello."},
        {"instruction": "Say nothing.", "input": "", "output": ""},
    ]
    seed = {"instruction": "Relation?", "instances": [{"input": "a:b", "output": "c"}, {"input": "", "output": "d"}]}

    records = convert("alpaca", written(tmp_path / "alpaca.json", items))
    seed_records = convert("alpaca", written(tmp_path / "seed.jsonl", json.dumps(seed) + "\n"))

    assert without_origin(records) == [
        {"domain": "zh", "task": "qa", "question": "翻译", "context": "cat", "answer": "猫"},
        {"domain": "en", "task": "qa", "question": "Say hello.", "answer": "Hello."},
    ]
    assert [record["answer"] for record in seed_records] == ["c", "d"]


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("kdconv", '[{"dialogue": []}]', "item 1 is not of the kind kdconv (KeyError('messages'))"),
        ("kdconv", "Hi.\t嗨。", "'[' expected before 'Hi."),
        ("kdconv", '[{"messages": []}, {"messages"', "not JSON"),
        ("kdconv", "[]", "it has no items of the kind kdconv"),
        ("lccc", '[{"messages": []}]', "not a list of texts"),
        ("tatoeba", "Hi. Hello.\n", "item 1 is not of the kind tatoeba"),
        ("alpaca", '[{"instruction": "a", "input": ""}]', "item 1 is not of the kind alpaca (KeyError('output'))"),
        ("mbpp", "[[1]]", "item 1 is not of the kind mbpp"),
    ],
)
def test_a_file_in_another_format_is_one_message_and_leaves_no_output(convert, tmp_path, kind, text, message):
    source = written(tmp_path / "source.json", text)

    with pytest.raises(SystemExit) as stopped:
        convert(kind, source)

    assert message in str(stopped.value)
    assert "source.json" in str(stopped.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source.json"]


def test_memory_does_not_grow_with_the_file(tool, monkeypatch, tmp_path):
    """Reading in chunks gives the same values wherever the chunks end."""
    value = {"a": [{"messages": [{"message": '你"[{'}]}] * 5, "b": [], "c": [["x", 1.5, None]]}
    source = written(tmp_path / "chunks.json", value)

    for chunk in (1, 2, 3, 7, 1 << 20):
        monkeypatch.setattr(tool, "_CHUNK", chunk)
        assert list(tool._json_values(source)) == value["a"] + value["c"]


@pytest.mark.parametrize(
    ("kind", "source", "items"),
    [
        ("kdconv", "sft/kdconv/film.dev.json", 150),
        ("kdconv", "sft/kdconv/travel.dev.json", 150),
        ("lccc", "sft/lccc/LCCC-base_test.json", 10_000),
        ("lccc", "sft/lccc/cdial_toy_data.json", 1_400),
        ("tatoeba", "sft/tatoeba/cmn.txt", 20_133),
        ("mbpp", "eval/mbpp/mbpp.jsonl", 974),
        ("mbpp", "eval/mbpp/sanitized-mbpp.json", 427),
        ("alpaca", "sft/instruct/alpaca_zh_demo.json", 1_000),
        ("alpaca", "sft/instruct/alpaca_en_demo.json", 999),
        ("alpaca", "sft/instruct/alpaca_seed_tasks.jsonl", 175),
    ],
)
def test_the_published_files_become_usable_records(convert, capsys, kind, source, items):
    if not (REAL / source).exists():
        pytest.skip(f"{REAL / source} is not here")

    records = convert(kind, REAL / source)

    assert capsys.readouterr().out.startswith(f"{items:,} items, {len(records):,} records")
    domains = {domain.name: domain for domain in build_domains(Config())}
    for record in records:
        instruction_parts(domains[record["domain"]], record)  # raises for an unusable record


DIALOGUE = '{"messages": [{"message": "a"}, {"message": "b"}]}'


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("kdconv", "[" * 100_000 + "]" * 100_000, "an item is nested too deeply"),
        ("kdconv", f'[{DIALOGUE[:-1]}, "messages": []}}]', "an item cannot be used: it has the key 'messages' twice"),
        ("kdconv", f"[{'9' * 100_000}]", "an item cannot be used: it has the integer 999"),
        ("kdconv", DIALOGUE.replace('"a"', '"\\ud800"').join("[]"), "item 1 has a lone surrogate"),
        ("kdconv", f"[{DIALOGUE}] and more", "there is more after its end: 'and more'"),
        ("kdconv", f'{{"a": [{DIALOGUE}]', "'}' expected before ''"),
        ("tatoeba", b"a\t\xb2\xe2", "line 1 is not UTF-8 (byte 2 of the line)"),
        ("tatoeba", "a\tb".encode("utf-16"), "is UTF-16, not UTF-8; convert it"),
    ],
)
def test_a_hostile_source_gets_one_message(convert, tmp_path, kind, content, message):
    source = tmp_path / "source.json"
    source.write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(SystemExit) as stop:
        convert(kind, source)

    assert message in str(stop.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source.json"]


def test_the_source_is_not_replaced(tool, tmp_path, monkeypatch, capsys):
    source = written(tmp_path / "source.json", f"[{DIALOGUE}]")
    monkeypatch.setattr(sys, "argv", ["x", "kdconv", str(source), str(tmp_path / "." / "source.json")])

    with pytest.raises(SystemExit, match="2"):
        tool.main()

    assert source.read_text() == f"[{DIALOGUE}]"
    assert "is the file to convert, and would be replaced" in capsys.readouterr().err
