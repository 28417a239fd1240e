"""The comparison of upcycled and random weights: the halves of the corpus, and in the slow suite a run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "compare_upcycling.py"
SMALL = {
    "model.num_layers": 3,
    "model.rre_layers": 1,
    "model.hidden_size": 32,
    "model.ffn_hidden_size": 64,
    "model.num_heads": 2,
    "model.seq_length": 32,
    "model.vocab_size": 4100,
    "training.local_batch_size": 4,
    "lr_scheduler.warmup_steps": 2,
    "monitor.heldout_samples": 8,
}


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("compare_upcycling")


@pytest.mark.parametrize("steps", ["5", "100"])
def test_steps_without_six_equal_parts_are_refused(tool, monkeypatch, capsys, steps):
    monkeypatch.chdir(TOOL.parents[1])
    monkeypatch.setattr(tool.sys, "argv", ["compare_upcycling.py", "--steps", steps])
    monkeypatch.setattr(tool, "measure", lambda *_: pytest.fail("the training started"))

    with pytest.raises(SystemExit):
        tool.main()

    assert f"--steps is {steps}, which has no 6 equal parts; give a multiple of 6" in capsys.readouterr().err


def test_the_halves_share_no_document(tool, tmp_path, monkeypatch):
    records = [{"source": "a", "doc": str(i // 3), "text": f"{i}"} for i in range(60)]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "en.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    monkeypatch.setattr(tool, "CORPUS", tmp_path / "corpus")

    halves = tool.halves(tmp_path)

    first, second = ([json.loads(line) for line in (half / "en.jsonl").read_text().splitlines()] for half in halves)
    assert first
    assert second
    assert sorted([*first, *second], key=lambda record: int(record["text"])) == records
    assert not {record["doc"] for record in first} & {record["doc"] for record in second}


def test_a_killed_upcycling_is_repeated(tool, tmp_path, monkeypatch):
    """Its folder exists as soon as anything is written; the complete checkpoint is renamed into place at the end."""
    verbs = []

    def run(self, name, keys=None, options=(), stages=()):
        verbs.extend(stage[0] for stage in stages)
        self.folder(name).checkpoints.mkdir(parents=True, exist_ok=True)
        self.folder(name).evaluation.write_text('{"domains": [{"domain": "zh", "loss": 5.0}]}')
        return self.folder(name).root

    monkeypatch.chdir(TOOL.parents[1])
    monkeypatch.setattr(tool.Runs, "run", run)
    child = tmp_path / "upcycling_child_12_0"

    for whole in (False, True):
        verbs.clear()
        (child / ".iteration_00000012.writing").mkdir(parents=True, exist_ok=True)
        if whole:
            (child / "iteration_00000012").mkdir()
            (child / "iteration_00000012" / "manifest.json").touch()
        runs = tool.Runs("recipes/cpu_smoke.yaml", {"training.output_dir": str(tmp_path)})
        assert len(tool.measure(runs, 0, 60, 12)["upcycled"]) == 6
        assert ("upcycle" in verbs) == (not whole)
        shutil.rmtree(tmp_path / "upcycling_upcycled_12_0")


@pytest.mark.slow
def test_both_children_are_measured_and_the_figures_are_saved(tmp_path):
    def run():
        words = SMALL | {"training.output_dir": tmp_path}
        options = ["--steps", "12", "--parent-steps", "12", "--json", str(tmp_path / "result.json")]
        command = [sys.executable, str(TOOL), *options, *(f"--{key}={value}" for key, value in words.items())]
        subprocess.run(command, cwd=TOOL.parents[1], check=True)
        (seed,) = json.loads((tmp_path / "result.json").read_text())
        return seed

    seed = run()

    assert {name: len(losses) for name, losses in seed.items()} == {"random": 6, "upcycled": 6}
    assert seed["upcycled"][0] < seed["random"][0]  # it starts from what its parent learned

    figures = next(tmp_path.glob("upcycling_upcycled_*/measured.json"))
    before = figures.read_bytes()

    assert run() == seed
    assert figures.read_bytes() == before
