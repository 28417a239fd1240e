"""Reading a corpus: records, reports of bad ones, and patterns of files."""

import json

import pytest

from mindpangu.data import CorpusReader
from mindpangu.data.corpus import expand_patterns
from mindpangu.domains import build_domains
from mindpangu.errors import DataError

GOOD = {"domain": "en", "text": "hello"}


@pytest.fixture
def open_reader(tmp_path, make_config):
    """Returns a function that writes raw lines to a file and opens a reader on it."""

    def make(*lines, names=(), **data):
        path = tmp_path / "corpus.jsonl"
        path.write_bytes(b"".join(line if isinstance(line, bytes) else line.encode() + b"\n" for line in lines))
        config = make_config([path], names, **data)
        return CorpusReader(config, build_domains(config))

    return make


def test_records_carry_domain_parts_bytes_and_document(open_reader, tmp_path):
    reader = open_reader(
        json.dumps({"domain": "zh", "text": "你好", "source": "wiki", "doc": 7}),
        "",
        json.dumps({"domain": "bilingual", "zh": "好", "en": "good", "source": "wiki"}),
        json.dumps({"domain": "code", "text": "int x;", "lang": "java", "doc": "a.java", "source": None}),
    )
    path = str(tmp_path / "corpus.jsonl")

    zh, bilingual, code = reader

    names = [domain.name for domain in reader.domains]
    assert [names[record.domain_id] for record in (zh, bilingual, code)] == ["zh", "bilingual", "code"]
    assert [record.parts for record in (zh, bilingual, code)] == [
        (("<cn>", "你好"),),
        (("<cn>", "好"), ("<en>", "good")),
        (("<java>", "int x;"),),
    ]
    assert [record.text_bytes for record in (zh, bilingual, code)] == [6, 7, 6]
    assert zh.source_document == ("wiki", "7")
    assert bilingual.source_document == ("wiki", f"{path}:3")
    assert code.source_document == (path, "a.java")
    assert reader.bytes_read == reader.total_bytes == (tmp_path / "corpus.jsonl").stat().st_size


BAD = {
    "not UTF-8": (b'{"domain": "en", "text": "\xff\xfe"}\n', r"not UTF-8 \(byte 26"),
    "not JSON": ("{domain: en}", "not JSON"),
    "truncated": ('{"domain": "en", "text": "a', "not JSON"),
    "too deep": ("[" * 100_000, "nested too deeply"),
    "a key twice": ('{"domain": "en", "text": "a", "text": "b"}', "the key 'text' twice"),
    "a key twice inside": ('{"domain": "en", "text": "a", "more": [{"x": 1, "x": 1}]}', "the key 'x' twice"),
    "not a number": ('{"domain": "en", "text": "a", "doc": NaN}', '"doc" has type float'),
    "a huge number": ('{"domain": "en", "text": "a", "doc": 1%s}' % ("0" * 5000), "integer"),
    "not an object": ('["en", "text"]', "a JSON list, not an object"),
    "no domain": ('{"text": "a"}', "unknown domain null"),
    "unknown domain": ('{"domain": "klingon", "text": "a"}', "unknown domain 'klingon'"),
    "unhashable domain": ('{"domain": ["en"], "text": "a"}', "unknown domain"),
    "no text": ('{"domain": "en"}', 'no "text"'),
    "empty text": ('{"domain": "en", "text": " \\n"}', '"text" is empty'),
    "text of another type": ('{"domain": "en", "text": 5}', '"text" has type int'),
    "lone surrogate": ('{"domain": "en", "text": "a\\ud800"}', "lone surrogate"),
    "half a pair": ('{"domain": "bilingual", "en": "a"}', 'no "zh"'),
    "unknown language": ('{"domain": "code", "text": "a", "lang": "rust"}', "unknown \"lang\" 'rust'.*python, java"),
    "bad doc": ('{"domain": "en", "text": "a", "doc": [1]}', '"doc" has type list'),
    "true as doc": (
        '{"domain": "en", "text": "a", "doc": true}',
        '"doc" has type bool, expected a string or an integer',
    ),
    "bad source": ('{"domain": "en", "text": "a", "source": true}', '"source" has type bool'),
}


@pytest.mark.parametrize(("line", "reason"), BAD.values(), ids=BAD)
def test_a_bad_record_is_named_and_counted_or_stops_the_job(open_reader, line, reason):
    good = json.dumps(GOOD)

    with pytest.raises(DataError, match=rf"(?s)max_bad_records = 0 .*corpus.jsonl:2: .*{reason}"):
        list(open_reader(good, line, good))

    reader = open_reader(good, line, good, max_bad_records=1)
    assert [record.parts for record in reader] == [(("<en>", "hello"),)] * 2
    assert (reader.report.num_records, reader.report.num_bad) == (2, 1)
    assert "corpus.jsonl:2: " in reader.report.summary()


def test_the_first_few_bad_records_are_listed(open_reader):
    reader = open_reader(*["{}"] * 8, json.dumps(GOOD), max_bad_records=8)

    assert len(list(reader)) == 1

    summary = reader.report.summary()
    assert "1 records; 8 bad records:" in summary
    assert [f"jsonl:{line}:" in summary for line in (1, 5, 6)] == [True, True, False]
    assert "and 3 more" in summary
    with pytest.raises(DataError, match="max_bad_records = 7"):
        list(open_reader(*["{}"] * 8, max_bad_records=7))


def test_as_many_bad_records_as_are_listed_leave_no_more(open_reader):
    reader = open_reader(*["{}"] * 5, max_bad_records=5)

    assert list(reader) == []

    lines = reader.report.summary().splitlines()
    assert lines[0] == "0 records; 5 bad records:"
    assert len(lines) == 6
    assert "corpus.jsonl:5:" in lines[5]
    assert reader.report.bad_records[4].endswith("unknown domain null (domains.preset is sigma_4)")


def test_domains_outside_this_run_are_skipped_not_bad(open_reader):
    skipped = [
        json.dumps({"domain": "zh", "text": "好"}),
        *[json.dumps({"domain": "code"})] * 2,
    ]  # not read any further
    reader = open_reader(*skipped, json.dumps(GOOD), "{}", names=["en"], max_bad_records=1)

    assert len(list(reader)) == 1

    assert (reader.report.num_bad, dict(reader.report.skipped)) == (1, {"zh": 1, "code": 2})
    assert reader.report.summary().startswith(
        "1 records; skipped, not in domains.names: code 2, zh 1; 1 bad records:\n"
    )


@pytest.mark.parametrize(
    ("lines", "is_partial"),
    [([GOOD], False), ([GOOD, {}], True), ([GOOD, {"domain": "zh", "text": "好"}], True)],
    ids=["complete", "bad", "skipped"],
)
def test_a_report_is_partial_if_a_record_was_left_out(open_reader, lines, is_partial):
    reader = open_reader(*map(json.dumps, lines), names=["en"], max_bad_records=1)

    list(reader)

    assert reader.report.is_partial == is_partial


def test_each_reading_starts_a_new_report(open_reader):
    reader = open_reader("{}", json.dumps(GOOD), max_bad_records=1)

    for _ in range(2):
        assert len(list(reader)) == 1
        assert (reader.report.num_records, reader.report.num_bad) == (1, 1)


def test_patterns_give_each_file_once_in_sorted_order(tmp_path, make_config, write_jsonl):
    for name in ("b", "a"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"domain": "en", "text": name}])
    (tmp_path / "folder.jsonl").mkdir()
    config = make_config([tmp_path / "b*.jsonl", tmp_path / "*.jsonl"])

    reader = CorpusReader(config, build_domains(config))

    assert [record.parts[0][1] for record in reader] == ["a", "b"]


def test_a_pattern_may_cross_folders_or_be_the_name_of_a_file(tmp_path, write_jsonl):
    (tmp_path / "a" / "b").mkdir(parents=True)
    plain = write_jsonl(tmp_path / "a" / "b" / "x1.jsonl", [GOOD])
    brackets = write_jsonl(tmp_path / "a" / "b" / "x[1].jsonl", [GOOD])
    link = tmp_path / "a" / "link.jsonl"
    link.symlink_to(plain)

    assert expand_patterns([str(brackets)]) == [brackets]
    assert expand_patterns([f"{tmp_path}/a/b/x[[]1].jsonl"]) == [brackets]
    assert expand_patterns([f"{tmp_path}/a/b/x[12].jsonl"]) == [plain]
    assert expand_patterns([f"{tmp_path}/**/*.jsonl"]) in ([plain, brackets], [brackets, link])  # the link is x1 again
    with pytest.raises(DataError, match=r"prompts pattern '.*\*\.txt' matches no file"):
        expand_patterns([f"{tmp_path}/*.txt"], "prompts")


def test_a_byte_count_includes_blank_lines_and_starts_again(open_reader):
    reader = open_reader(json.dumps(GOOD), "", "   ", json.dumps(GOOD))
    assert reader.bytes_read == 0

    for _ in range(2):
        seen = [reader.bytes_read for _ in reader]
        assert seen == [len(json.dumps(GOOD)) + 1, reader.total_bytes]
        assert reader.report.num_bad == 0


def test_a_file_in_another_encoding_is_named(open_reader):
    reader = open_reader(json.dumps(GOOD).encode("utf-16"), max_bad_records=5)

    with pytest.raises(DataError, match=r"corpus file .*corpus\.jsonl is .*UTF-16"):
        list(reader)


def test_a_pattern_without_a_file_is_an_error(tmp_path, make_config, write_jsonl):
    write_jsonl(tmp_path / "a.jsonl", [GOOD])
    config = make_config([tmp_path / "*.jsonl", tmp_path / "missing*.jsonl"])

    with pytest.raises(DataError, match=r"missing\*.jsonl' matches no file"):
        CorpusReader(config, build_domains(config))
    with pytest.raises(DataError, match=r"data.corpus is empty"):
        CorpusReader(make_config(), build_domains(config))


def test_a_file_that_vanishes_is_a_data_error(open_reader, tmp_path):
    reader = open_reader(json.dumps(GOOD))
    (tmp_path / "corpus.jsonl").unlink()

    with pytest.raises(DataError, match=r"corpus.jsonl cannot be read: No such file"):
        list(reader)
