"""Verbs write neither into a complete checkpoint nor over files of other programs."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from mindpangu.cli.main import main
from mindpangu.tiny.inheritance.report import refuse_other_files

OLDER = Path(__file__).parents[1] / "fixtures" / "written_by_0_1_0"
CHECKPOINT = "run/checkpoint/iteration_00000004"
COUNT = ("tiny", "tokenizer", "--tokenizer", "own.model", "--size", "360", "--corpus", "corpus.jsonl")

INTO_A_CHECKPOINT = {
    "extract": ["extract", "--domains", "zh", "--checkpoint", "run", "--out", f"{CHECKPOINT}/out"],
    "extract --export": ["extract", "--domains", "zh", "--checkpoint", "run", "--export", "--out", f"{CHECKPOINT}/out"],
    "experts": ["experts", "remove", "zh", "--checkpoint", "run", "--out", CHECKPOINT],
    "tokenizer extend": ["tokenizer", "extend", "--model", "own.model", "--out", f"{CHECKPOINT}/tokenizer/signs.model"],
    "tiny tokenizer": [*COUNT, "--out", CHECKPOINT],
    "tiny tokenizer, below": [*COUNT, "--out", f"{CHECKPOINT}/tokenizer"],
    "tiny tokenizer --counts": [*COUNT, "--out", "out", "--counts", f"{CHECKPOINT}/counts.safetensors"],
    "a run": ["tokenizer", "train", "--data.corpus", "[corpus.jsonl]", "--training.output_dir", CHECKPOINT],
    "a search": "tiny batch-size --batches 4,8 --rates 1e-3,2e-3 --tokens 64K --data.corpus [corpus.jsonl] "
    f"--out {CHECKPOINT}".split(),
}


@pytest.fixture
def box(tmp_path, monkeypatch, tiny_corpus):
    """The working directory: a run, a tokenizer, and a corpus."""
    shutil.copytree(OLDER / "run", tmp_path / "run")
    shutil.copy(OLDER / "run" / "tokenizer" / "signs.model", tmp_path / "own.model")
    shutil.copy(tiny_corpus, tmp_path / "corpus.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content(folder):
    return {
        path.relative_to(folder): path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("name", INTO_A_CHECKPOINT)
def test_nothing_is_written_into_a_checkpoint(box, capsys, name):
    """It would be lost when training prunes the checkpoint; and a file of the checkpoint could be replaced."""
    before = content(box)

    assert main(INTO_A_CHECKPOINT[name]) == 1

    assert "is in the checkpoint iteration_00000004, which stays as it is" in capsys.readouterr().err
    assert content(box) == before


def test_a_folder_with_another_programs_manifest_is_no_checkpoint(box):
    (box / "site").mkdir()
    (box / "site" / "manifest.json").write_text('{"name": "my site", "step": 3, "files": {}}')

    assert main(["extract", "--domains", "zh", "--checkpoint", "run", "--out", "site/zh"]) == 0


@pytest.mark.parametrize(
    ("name", "content"), [("tokenizer.model", "of an export"), ("report.json", "[1]"), ("report.json", '{"a": 1}')]
)
def test_tiny_tokenizer_replaces_only_its_own_results(box, capsys, name, content):
    (box / "out").mkdir()
    (box / "out" / name).write_text(content)

    assert main([*COUNT, "--out", "out"]) == 1

    assert f"out/{name} would be replaced, but is not a result of mindpangu" in capsys.readouterr().err
    assert (box / "out" / name).read_text() == content
    (box / "out" / name).unlink()
    assert main([*COUNT, "--out", "out"]) == 0
    (box / "out" / "report.json").write_text("damaged")
    assert main([*COUNT, "--out", "out"]) == 0


@pytest.mark.parametrize("name", ["results.json", "points.json"])
def test_a_search_replaces_only_its_own_results(box, capsys, name):
    (box / "out").mkdir()
    (box / "out" / name).write_text('{"mine": 1}')
    words = "tiny architecture --budget 30K --points 2 --depth 1:2 --width 8:32 --head-size 8 --tolerance 0.5 --out out"

    assert main([*words.split(), "--model.vocab_size", "420", "--model.rre_layers", "0"]) == 1

    assert f"out/{name} would be replaced, but is not a result of mindpangu" in capsys.readouterr().err
    assert [path.name for path in (box / "out").iterdir()] == [name]


@pytest.mark.parametrize(("name", "content"), [("report.txt", "mine"), ("report.json", json.dumps({"mine": 1}))])
def test_tiny_inherit_replaces_only_its_own_report(tmp_path, name, content):
    refuse_other_files(tmp_path)
    (tmp_path / name).write_text(content)

    with pytest.raises(Exception, match=f"{name} would be replaced, but is not a result of mindpangu"):
        refuse_other_files(tmp_path)


@pytest.mark.parametrize("name", ["corpus.jsonl", "own.model", "link"])
def test_tokenizer_extend_replaces_only_its_own_results(box, capsys, name):
    (box / "link").hardlink_to(box / "own.model")
    before = content(box)

    assert main(["tokenizer", "extend", "--model", "own.model", "--out", name]) == 1

    assert "would be replaced" in capsys.readouterr().err
    assert content(box) == before
    for _ in range(2):
        assert main(["tokenizer", "extend", "--model", "own.model", "--out", "new.model"]) == 0
