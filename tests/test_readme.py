"""README.md keeps its promises: its commands run and leave what it says, and README_CN.md has the same commands.

The fast test runs the main job with 20 steps of a narrower model and then every other command. The slow test runs the
main job as it stands.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
STAGES = ("tokenizer", "data", "routing", "train", "evaluate", "generate")
MAIN_JOB = "bash recipes/run_910.sh"

# Narrower, with smaller batches and less evaluation, so that the test is quick; all else is as in the recipe.
SMALLER = {
    "model.num_layers": "3",
    "model.hidden_size": "64",
    "model.ffn_hidden_size": "128",
    "model.seq_length": "48",
    "training.local_batch_size": "4",
    "monitor.heldout_samples": "8",
}


def bash_blocks(name):
    text = (PROJECT / name).read_text(encoding="utf-8")
    return re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(block):
    return [line for line in block.splitlines() if line and not line.startswith("#")]


def adapted(command, output, overrides):
    """A documented command with another output folder, the running interpreter, and overrides where it takes them."""
    words = shlex.split(command.replace("output/", f"{output}/"))
    if words[0] == ".venv/bin/mindpangu":
        words[:1] = [sys.executable, "-m", "mindpangu"]
    else:
        assert words[:2] == MAIN_JOB.split(), command
    given = {word.removeprefix("--") for word in words}
    return [*words, *(word for key, value in overrides.items() if key not in given for word in (f"--{key}", value))]


def run(words):
    environment = os.environ | {"MINDPANGU_PYTHON": sys.executable, "PYTHONPATH": str(PROJECT)}
    began = time.perf_counter()
    done = subprocess.run(words, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout, time.perf_counter() - began


def small_run(output):
    return SMALLER | {"training.output_dir": str(output)}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """An output folder in which the main job was run with 20 steps."""
    output = tmp_path_factory.mktemp("output")
    run(adapted(MAIN_JOB, output, small_run(output) | {"training.steps": "20"}))
    return output


def test_the_main_job_leaves_what_is_promised(output):
    folder = output / "cpu_smoke"
    for name in ("report.md", "loss.png", "metrics.jsonl", "config.yaml", "routing.png", "checkpoint"):
        assert (folder / name).exists(), name
    assert [path.name for path in (folder / "checkpoint").iterdir()] == ["iteration_00000020"]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 20
    report = (folder / "report.md").read_text(encoding="utf-8")
    for domain in ("bilingual", "zh", "en", "code"):
        assert f"| {domain} |" in report
        assert f"**{domain}**" in report


def test_a_second_start_skips_every_stage_at_once(output):
    said, seconds = run(adapted(MAIN_JOB, output, small_run(output) | {"training.steps": "20"}))

    assert [line.split(":")[0] for line in said.splitlines() if "up to date" in line] == list(STAGES)
    assert seconds < 10


def test_every_further_command_works_right_after_the_first_one(output):
    tokenizer = output / "cpu_smoke" / "tokenizer" / "main.model"

    said = {}
    for command in (command for block in bash_blocks("README.md")[1:] for command in commands(block)):
        overrides = {}
        if command.startswith(MAIN_JOB):
            overrides = small_run(output) | {"data.tokenizer": str(tokenizer)}  # the same one; training it takes long
        elif "--config recipes/cpu_smoke.yaml" in command:
            overrides = small_run(output)
        said[command] = run(adapted(command, output, overrides))[0]

    generated, loads, keys, first, resumed, added, extracted, compact, architectures, rounds = said.values()
    assert generated.startswith("To open the dialog")
    assert "expected load (balanced)" in loads
    assert "--data.domains_per_step  (int, default 1)" in keys
    assert "train: done" in first
    assert resumed.count("up to date") == len(STAGES)
    records = [json.loads(line) for line in (output / "mine" / "metrics.jsonl").read_text().splitlines()]
    assert [len(record["domains"]) for record in records] == [2] * 20
    assert "poetry" in added
    assert "zh_code" in extracted
    assert "8,000" in compact or "8000" in compact
    assert "1280" in architectures or "1,280" in architectures
    assert "round 2" in rounds


def test_the_first_block_is_the_two_commands():
    assert commands(bash_blocks("README.md")[0]) == [MAIN_JOB, "bash tests/run.sh"]


def test_the_translation_has_the_same_commands_and_sections():
    ours = (PROJECT / "README.md").read_text(encoding="utf-8")
    theirs = (PROJECT / "README_CN.md").read_text(encoding="utf-8")

    assert [commands(block) for block in bash_blocks("README_CN.md")] == [
        commands(block) for block in bash_blocks("README.md")
    ]
    assert re.findall(r"^#+", theirs, re.MULTILINE) == re.findall(r"^#+", ours, re.MULTILINE)


@pytest.mark.slow
def test_the_whole_main_job_learns_every_domain_in_time(tmp_path):
    _, seconds = run(adapted(MAIN_JOB, tmp_path, {"training.output_dir": str(tmp_path)}))
    print(f"the main job took {seconds:.0f} s")
    folder = tmp_path / "cpu_smoke"
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 150
    domains = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["domains"]
    assert [each["domain"] for each in domains] == ["bilingual", "zh", "en", "code"]
    for each in domains:
        assert each["perplexity"] < 0.75 * each["unigram_perplexity"], each
        assert len(each["perplexity_as"]) == 3
        for other, perplexity in each["perplexity_as"].items():
            assert perplexity > each["perplexity"], (each["domain"], other)
    assert seconds < 300
