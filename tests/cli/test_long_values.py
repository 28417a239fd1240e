"""A message stays short, however long the value is that it quotes: an option, a path, or a field of a record."""

import json

import pytest

from mindpangu.cli.main import main

LONG = "A" * 1_000_000
RECORDS = [
    {"domain": "zh", "task": LONG},
    {"domain": "zh", "task": [[LONG]]},
    {"domain": LONG, "task": "qa", "question": "x"},
    {"domain": [LONG], "task": "qa", "question": "x"},
    {"domain": "code", "task": "code", "instruction": "x", "answer": "y", "lang": LONG},
    {"domain": "code", "task": "code", "instruction": "x", "answer": "y", "lang": [LONG]},
    {"domain": "bilingual", "task": "translation", "text": "x", "translation": "y", "from": LONG, "to": "zh"},
    {LONG: 1},
]
OPTIONS = {
    "a path": ["extract", "--domains", "zh", "--out", "out", "--checkpoint", "x" * 9000],
    "a number": ["tiny", "batch-size", "--rule", "--batches", "9" * 9000],
    "a name": ["config", "--get", "x" * 9000],
    "a value": ["config", "--training.steps", "x" * 9000],
    "a size": ["generate", "--domain", "zh", "--prompt", "x", "--expert-memory", "9" * 9000],
}


@pytest.mark.parametrize("record", RECORDS, ids=range(len(RECORDS)))
def test_a_bad_record_gets_a_short_message(tmp_path, monkeypatch, capsys, record):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "records.jsonl").write_text(json.dumps(record) + "\n")
    corpus = ["--data.corpus", "[records.jsonl]"]

    for words in (
        ["tokenizer", "train", *corpus, "--data.format", "instruction"],
        ["tokenizer", "train", *corpus],
        ["tiny", "batch-size", *"--batches 4,8 --rates 1e-3,2e-3 --tokens 64K --out out".split(), *corpus],
    ):
        assert main(words) == 1
        printed = capsys.readouterr()
        assert len(printed.out + printed.err) < 4000, words


@pytest.mark.parametrize("name", OPTIONS)
def test_a_long_option_gets_a_short_message(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)

    assert main(OPTIONS[name]) == 1

    assert len(capsys.readouterr().err) < 4000


def test_a_wrong_option_gets_a_short_message(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--" + "x" * 9000])

    assert len(capsys.readouterr().err) < 8000  # usage included


def test_the_list_of_bad_records_has_short_lines(tmp_path, monkeypatch, tiny_corpus):
    monkeypatch.chdir(tmp_path)
    bad = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (tmp_path / "corpus.jsonl").write_text(tiny_corpus.read_text("utf-8") + bad, "utf-8")
    words = ["--data.corpus", "[corpus.jsonl]", "--model.vocab_size", "420", "--data.max_bad_records", "9"]
    run = tmp_path / "output" / "cpu_smoke"

    for stage in (["tokenizer", "train"], ["data", "prepare"]):
        assert main([*stage, *words, "--training.run_name", "cpu_smoke"]) == 0

    assert (run / "data" / "bad_records.txt").stat().st_size < 3000 * len(RECORDS)
