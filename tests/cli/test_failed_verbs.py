"""A verb that fails leaves no trace of its --out: neither an empty folder nor a file."""

import os
import shutil
from pathlib import Path

import pytest

from mindpangu.cli.main import main

OLDER = Path(__file__).parents[1] / "fixtures" / "written_by_0_1_0"

FROM = ("--checkpoint", "run", "--out", "new/out")
VERBS = [
    ("extract", "--domains", "zh,code", *FROM),
    ("extract", "--domains", "zh,code", "--verify", *FROM),
    ("extract", "--domains", "code", "--export", *FROM),
    ("extract", "--domains", "absent", *FROM),
    ("experts", "add", "poetry", "--from", "code", *FROM),
    ("experts", "add", "poetry", "--fresh", "--tokenizer", "bad.model", *FROM),
    ("experts", "copy", "zh", "--from", "code", *FROM),
    ("experts", "replace", "zh", "--with", "absent", *FROM),
    ("experts", "remove", "zh", *FROM),
    ("experts", "resize", "code", "--experts", "1", *FROM),
    ("upcycle", "--config", "run/config.yaml", "--parent", "run", "--out", "new/out"),
    (
        *("convert", "from-pangu-alpha", "--source", "bad.model", "--config", "run/config.yaml"),
        *("--tokenizer", "bad.model", "--out", "new/out"),
    ),
    ("convert", "to-pangu-alpha", *FROM),
    ("tokenizer", "extend", "--model", "bad.model", "--out", "new/out/extended.model"),
    (
        "tokenizer",
        "train",
        "--config",
        "recipe.yaml",
        "--data.corpus",
        "[bad.model]",
        "--training.output_dir",
        "new/out",
    ),
    ("data", "prepare", "--config", "recipe.yaml", "--training.output_dir", "new/out"),
    ("routing", "build", "--config", "recipe.yaml", "--training.output_dir", "new/out"),
    (
        *("tiny", "tokenizer", "--tokenizer", "bad.model", "--size", "390", "--corpus", "corpus.jsonl"),
        *("--out", "new/out"),
    ),
    ("tiny", "tokenizer", "--size", "390", "--corpus", "absent.jsonl", *FROM),
    ("tiny", "inherit", "--config", "run/config.yaml", "--parent", "run", "--out", "new/out"),
]


@pytest.mark.parametrize("words", VERBS, ids=lambda words: " ".join(words[:3]))
def test_a_failed_verb_leaves_nothing(words, tmp_path, monkeypatch, capsys):
    shutil.copytree(OLDER, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    Path("bad.model").write_bytes(b"no model")
    for path in Path("run/checkpoint").glob("iteration_*/experts/*.code.*"):
        path.write_bytes(path.read_bytes()[:-1])  # the last bytes were not copied
    before = sorted(os.listdir())

    code = main(words)

    error = capsys.readouterr().err
    assert code == 1, error
    assert len([line for line in error.splitlines() if line.startswith("mindpangu: error: ")]) == 1, error
    assert sorted(os.listdir()) == before
