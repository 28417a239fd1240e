"""The lifelong-learning comparison: its table, and in the slow suite a run with a small model."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("lifelong_learning")


def test_the_table_distinguishes_no_change_from_a_small_one(tool):
    seeds = [
        {
            "rre_before": {"zh": 6.0, "poetry": 7.0},
            "rre_after": {"zh": 6.0, "poetry": 5.0 + seed / 10},
            "dense_before": {"zh": 6.0},
            "dense_after": {"zh": 6.5 + seed / 10, "poetry": 4.0},
        }
        for seed in range(3)
    ]

    zh, poetry = tool.format_table(seeds).splitlines()[2:]

    assert "0, every bit the same" in zh
    assert "+0.600 ± 0.248" in zh  # 0.5, 0.6, 0.7: standard deviation 0.1; t(0.975, 2) = 4.303
    assert "-1.900 ± 0.248" in poetry
    assert poetry.split()[-1] == "54.6"  # e^4: the dense model had no such domain before


@pytest.mark.slow
def test_old_domains_do_not_change_and_the_dense_model_forgets(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = {
        "training.output_dir": str(tmp_path),
        "model.hidden_size": "64",
        "model.vocab_size": "4000",
        "training.steps": "60",
        "lr_scheduler.learning_rate": "3e-3",
        "monitor.heldout_samples": "16",
    }
    runs = tool.Runs("recipes/cpu_smoke.yaml", words)

    losses = tool.measure(runs, 0, 30)

    old = ("bilingual", "zh", "en", "code")
    for domain in old:
        assert losses["rre_after"][domain] == losses["rre_before"][domain]
        assert losses["dense_after"][domain] > losses["dense_before"][domain] + 0.1
    assert losses["rre_after"]["poetry"] < losses["rre_before"]["poetry"] - 0.1
