"""The comparison of a second round with plain continuation: its figures, and in the slow suite a quick run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "compare_tiny_rounds.py"


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("compare_tiny_rounds")


@pytest.fixture
def measured(tool):
    """Three seeds: the second round is worse by 0.1, 0.2, 0.3 in zh and better by 0.1 in code."""
    return [
        {
            tool.FIRST: {"zh": 5.0, "code": 4.0},
            tool.PLAIN: {"zh": 4.5, "code": 3.5},
            tool.SAMPLED: {"zh": 4.6 + 0.1 * seed, "code": 3.4},
        }
        for seed in range(3)
    ]


def test_differences_are_the_second_round_minus_plain_continuation(tool, measured):
    intervals = tool.differences(measured)

    assert {name: round(interval.mean, 6) for name, interval in intervals.items()} == {
        "zh": 0.2,
        "code": -0.1,
        "mean": 0.05,
    }


def test_the_table_has_every_domain_and_their_mean(tool, measured):
    table = tool.format_table(measured, 1400)

    assert "3 seeds; round 1 of 1400 steps, then 700" in table
    assert "| zh | 5.000 | 4.500 | 4.700 | +0.200 ± 0.248 |" in table
    assert "| mean | 4.500 | 4.000 | 4.050 |" in table
    assert "±" not in tool.format_table(measured[:1], 1400)


def test_saved_figures_are_used_only_for_the_same_configuration(tool, tmp_path, monkeypatch):
    names_run = []

    def run(self, name, keys=None, options=(), stages=()):
        names_run.append(name)
        self.folder(name).root.mkdir(exist_ok=True)
        self.folder(name).evaluation.write_text('{"domains": [{"domain": "zh", "loss": 5.0}]}')
        return self.folder(name).root

    monkeypatch.setattr(tool.Runs, "run", run)
    config = str(TOOL.parents[1] / "recipes" / "cpu_tiny.yaml")
    keys = {"training.output_dir": str(tmp_path)}

    losses = tool.measure(config, keys, 0, 40)
    assert losses == {tool.PLAIN: {"zh": 5.0}, tool.FIRST: {"zh": 5.0}, tool.SAMPLED: {"zh": 5.0}}
    assert len(names_run) == 3

    assert tool.measure(config, keys, 0, 40) == losses
    assert len(names_run) == 3

    tool.measure(config, keys | {"optimizer.weight_decay": "0.2"}, 0, 40)
    assert len(names_run) == 6


@pytest.mark.slow
def test_both_trainings_share_round_1_and_differ_afterwards(tmp_path):
    result = tmp_path / "result.json"
    words = ["--quick", "--json", str(result), f"--training.output_dir={tmp_path}"]

    subprocess.run([sys.executable, str(TOOL), *words], cwd=TOOL.parents[1], check=True)

    (seed,) = json.loads(result.read_text())["seeds"]
    for domain, loss in seed["round 1"].items():
        assert seed["plain continuation"][domain] < loss
        assert seed["second round"][domain] != seed["plain continuation"][domain]
    plain, sampled = (
        (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        for name in ("tiny_rounds_40_0", "tiny_rounds_40_0_sampled")
    )
    rates = [[json.loads(line)["lr"] for line in lines] for lines in (plain, sampled)]
    assert rates[0] == rates[1]
    assert len(rates[0]) == 60
