"""README.md is true: its commands run and write the files that it names, and README_CN.md has the same commands.

The fast tests run the main job with 20 steps of a narrower model, and then every other command. The slow test runs the
main job unchanged.
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
CLUSTER = "bash recipes/run_cpu_cluster.sh"

# A narrower model, smaller batches, and less evaluation keep the test quick. Everything else is as in the recipe.
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
    """Returns a documented command with another output folder, this interpreter, and overrides it does not set."""
    words = shlex.split(command.replace("output/", f"{output}/"))
    if words[0] == ".venv/bin/mindpangu":
        words[:1] = [sys.executable, "-m", "mindpangu"]
    else:
        assert words[:2] in (MAIN_JOB.split(), CLUSTER.split()), command
    given_keys = {word.removeprefix("--") for word in words}
    return [
        *words,
        *(word for key, value in overrides.items() if key not in given_keys for word in (f"--{key}", value)),
    ]


def run(words):
    environment = os.environ | {"MINDPANGU_PYTHON": sys.executable, "PYTHONPATH": str(PROJECT)}
    start = time.perf_counter()
    done = subprocess.run(words, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout, time.perf_counter() - start


def small_run(output):
    return SMALLER | {"training.output_dir": str(output)}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """An output folder after 20 steps of the main job."""
    output = tmp_path_factory.mktemp("output")
    run(adapted(MAIN_JOB, output, small_run(output) | {"training.steps": "20"}))
    return output


def test_the_main_job_writes_the_files_that_the_readme_names(output):
    folder = output / "cpu_smoke"

    for name in ("report.md", "loss.png", "metrics.jsonl", "config.yaml", "routing.png", "checkpoint"):
        assert (folder / name).exists(), name

    assert [path.name for path in (folder / "checkpoint").iterdir()] == ["iteration_00000020"]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 20

    report = (folder / "report.md").read_text(encoding="utf-8")
    for domain in ("bilingual", "zh", "en", "code"):
        assert f"| {domain} |" in report
        assert f"**{domain}**" in report


def test_a_second_run_skips_every_stage_within_seconds(output):
    printed, seconds = run(adapted(MAIN_JOB, output, small_run(output) | {"training.steps": "20"}))

    assert [line.split(":")[0] for line in printed.splitlines() if "up to date" in line] == list(STAGES)
    assert seconds < 10


@pytest.mark.slow
def test_every_other_command_works_right_after_the_main_job(output):
    tokenizer = output / "cpu_smoke" / "tokenizer" / "main.model"

    printed = {}
    for command in (command for block in bash_blocks("README.md")[1:] for command in commands(block)):
        overrides = {}
        if command.startswith((MAIN_JOB, CLUSTER)):
            # training the same tokenizer again takes long
            overrides = small_run(output) | {"data.tokenizer": str(tokenizer)}
        elif "--config recipes/cpu_smoke.yaml" in command:
            overrides = small_run(output)
        printed[command] = run(adapted(command, output, overrides))[0]

    generated, loads, keys, first, resumed, together, added, extracted, compact, architectures, rounds = (
        printed.values()
    )
    assert generated.startswith("To open the dialog")
    assert "expected load (balanced)" in loads
    assert "--data.domains_per_step  (int, default 1)" in keys
    assert "train: done" in first
    assert resumed.count("up to date") == len(STAGES)
    records = [json.loads(line) for line in (output / "mine" / "metrics.jsonl").read_text().splitlines()]
    assert [len(record["domains"]) for record in records] == [2] * 20
    assert "processes: 2" in together
    assert len((output / "two" / "metrics.jsonl").read_text().splitlines()) == 20
    assert "poetry" in added
    assert "zh_code" in extracted
    assert "8,000" in compact or "8000" in compact
    assert "1280" in architectures or "1,280" in architectures
    assert "round 2" in rounds


def test_the_first_block_has_the_main_job_and_the_tests():
    assert commands(bash_blocks("README.md")[0]) == [MAIN_JOB, "bash tests/run.sh"]


def test_the_translation_has_the_same_commands_and_sections():
    english = (PROJECT / "README.md").read_text(encoding="utf-8")
    chinese = (PROJECT / "README_CN.md").read_text(encoding="utf-8")

    assert [commands(block) for block in bash_blocks("README_CN.md")] == [
        commands(block) for block in bash_blocks("README.md")
    ]
    assert re.findall(r"^#+", chinese, re.MULTILINE) == re.findall(r"^#+", english, re.MULTILINE)


@pytest.mark.slow
def test_the_main_job_learns_every_domain_in_five_minutes(tmp_path):
    _, seconds = run(adapted(MAIN_JOB, tmp_path, {"training.output_dir": str(tmp_path)}))
    print(f"the main job took {seconds:.0f} s")

    folder = tmp_path / "cpu_smoke"
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 400
    domains = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["domains"]
    assert [result["domain"] for result in domains] == ["bilingual", "zh", "en", "code"]
    for result in domains:
        assert result["perplexity"] < 0.5 * result["unigram_perplexity"], result
        assert len(result["perplexity_as"]) == 3
        for other, perplexity in result["perplexity_as"].items():
            assert perplexity > result["perplexity"], (result["domain"], other)

    assert seconds < 300
