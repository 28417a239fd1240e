"""The runs of a comparison: failed verbs are shown, Ctrl-C lets verbs save, and figures are saved."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[3] / "tools"
VERB = """#!/bin/sh
trap 'sleep 1; echo saved > "$4"; exit' INT TERM HUP
echo began > "$3"
while :; do sleep 0.1; done
"""


@pytest.fixture
def run_verb(tmp_path):
    """Starts a comparison whose Python interpreter is `program`: run_verb(program, *words) → its process."""

    def start(program, *words):
        (tmp_path / "program").write_text(program)
        (tmp_path / "program").chmod(0o755)
        script = (
            f"import signal, sys; sys.path[:0] = [{str(TOOLS)!r}, {str(TOOLS.parent)!r}]\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            f"from comparison import runs; sys.executable = {str(tmp_path / 'program')!r}\n"
            f"runs.mindpangu(*{[str(word) for word in words]!r})\n"
        )
        command = [sys.executable, "-c", script]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)

    return start


def test_a_failed_verb_is_shown_with_its_output(run_verb):
    process = run_verb("#!/bin/sh\necho some table\necho 'mindpangu: error: no such thing' >&2\nexit 1\n", "train", "x")
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 1
    assert errors == "mindpangu train x\nsome table\nmindpangu: error: no such thing\n\n"


@pytest.mark.parametrize("to", ["tool", "group"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_waits_until_the_verb_has_saved(run_verb, tmp_path, signum, to):
    began = tmp_path / "began"
    saved = tmp_path / "saved"
    process = run_verb(VERB, began, saved)
    until = time.monotonic() + 60
    while not began.exists() and time.monotonic() < until:
        time.sleep(0.05)

    process.send_signal(signum) if to == "tool" else os.killpg(process.pid, signum)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 128 + signum
    assert saved.read_text() == "saved\n"
    assert errors == "stopped; run the same command to resume\n"


@pytest.mark.parametrize("name", ["compare_dense_twin", "compare_upcycling"])
def test_a_stopped_training_is_resumed(load_tool, tmp_path, monkeypatch, name):
    runs = load_tool(name).Runs(str(TOOLS.parent / "recipes" / "cpu_tiny.yaml"), {"training.output_dir": str(tmp_path)})
    commands = []
    monkeypatch.setattr("comparison.runs.mindpangu", lambda *words: commands.append(words))

    runs.run("one", options=["--load", "there"])

    (training,) = (words for words in commands if words[0] == "train")
    assert training[:4] == ("train", "--resume", "--load", "there")


def test_the_keys_of_a_run_override_those_of_the_command_line(load_tool, tmp_path, monkeypatch):
    tool = load_tool("comparison/runs")
    keys = {"training.output_dir": tmp_path, "training.steps": 50, "optimizer.weight_decay": 0.2}
    command = []
    monkeypatch.setattr(tool, "mindpangu", lambda *words: command.extend(words))
    runs = tool.Runs(str(TOOLS.parent / "recipes" / "cpu_tiny.yaml"), keys)

    runs.run("one", {"training.steps": 70}, stages=(["train"],))

    overrides = dict(zip(command[-8::2], command[-7::2], strict=True))
    assert overrides == {
        "--training.output_dir": str(tmp_path),
        "--training.steps": "70",
        "--optimizer.weight_decay": "0.2",
        "--training.run_name": "one",
    }


def test_figures_of_another_corpus_or_configuration_are_not_current(load_tool, tmp_path):
    corpus = tmp_path / "text.jsonl"
    corpus.write_text("one\n")
    keys = {"training.output_dir": tmp_path, "data.corpus": f"[{corpus}]"}
    runs = load_tool("comparison/runs").Runs(str(TOOLS.parent / "recipes" / "cpu_tiny.yaml"), keys)
    runs.folder("run").root.mkdir()

    runs.result_file("run").write({"losses": [1.0]})

    assert runs.result_file("run").is_current()
    assert not runs.result_file("run", {"training.steps": 70}).is_current()
    corpus.write_text("two\n")
    assert not runs.result_file("run").is_current()
