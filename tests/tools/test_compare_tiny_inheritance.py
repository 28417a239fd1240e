"""The figures of the inheritance comparison. The runs consist of verbs that have their own tests."""

import math
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("compare_tiny_inheritance")


@pytest.fixture
def measured(tool):
    """Three seeds; each variant is better than the previous one by 0.1, the learned one by another 0.01 per seed."""
    seeds = []
    for seed in range(3):
        after = {variant: 5 - 0.1 * i for i, variant in enumerate(reversed(tool.VARIANTS))}
        after["learned"] -= 0.01 * seed
        seeds.append({name: {"before": 6.0, "after": value} for name, value in after.items()})
        seeds[-1]["initial"]["before"] = None
    return seeds


def test_differences_are_paired_and_have_t_intervals(tool, measured):
    intervals = tool.differences(measured)

    # in reversed order the learned variant is the second to last, 4.6 − 0.01 per seed; Taylor before it is 4.7
    assert intervals["learned", "taylor"].mean == pytest.approx(-0.11)
    # deviations −0.01, 0, 0.01: standard deviation 0.01; t(0.975, 2) = 4.303
    assert intervals["learned", "taylor"].half_width == pytest.approx(4.303 * 0.01 / math.sqrt(3), rel=1e-3)
    assert intervals["l2", "random"].half_width == pytest.approx(0, abs=1e-12)


def test_every_method_is_compared_with_random_weights_and_with_the_learned_mask(tool):
    assert {first for first, second in tool.PAIRS if second == tool.INITIAL} == set(tool.METHODS)
    assert {second for first, second in tool.PAIRS if first == "learned"} == set(tool.VARIANTS) - {"learned"}


def test_the_table_has_every_variant_and_no_intervals_for_one_seed(tool, measured):
    table = tool.format_table(measured, [4.0, 4.1, 4.2], tool.FULL)

    assert "| parent | | 4.100 |" in table
    assert "| inherited, taylor | 6.000 |" in table
    assert "| inherited, learned − random weights |" in table
    assert "interval" not in tool.format_table(measured[:1], [4.0], tool.QUICK)


def test_children_fit_their_parents(tool):
    for size in (tool.FULL, tool.QUICK):
        head_sizes = {int(model["hidden_size"]) / int(model["num_heads"]) for model in (size.parent, size.child)}
        assert len(head_sizes) == 1
        assert all(int(size.child[key]) < int(size.parent[key]) for key in size.parent)
        assert int(size.child["num_layers"]) >= 4  # two at each end are kept


def test_saved_figures_are_used_only_for_the_same_configuration(tool, tmp_path, monkeypatch):
    stages_run = []

    def run(self, name, keys=None, options=(), stages=()):
        stages_run.append(stages)
        self.folder(name).root.mkdir(exist_ok=True)
        self.folder(name).evaluation.write_text('{"domains": [{"domain": "zh", "loss": 5.0}]}')
        return self.folder(name).root

    monkeypatch.setattr(tool.Runs, "run", run)
    config = str(Path(__file__).parents[2] / "recipes" / "cpu_smoke.yaml")

    def measure(**keys):
        stages_run.clear()
        comparison = tool.Comparison(config, {"training.output_dir": str(tmp_path), **keys}, "quick")
        return comparison.measure(0, "l2"), len(stages_run)

    losses, num_runs = measure()

    assert losses == {"before": 5.0, "after": 5.0}
    assert num_runs > 0
    assert measure() == (losses, 0)
    assert measure(**{"optimizer.weight_decay": "0.2"}) == (losses, num_runs)
