"""The comparison with the dense twin: its table, and in the slow suite a training."""

import math

import pytest


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("compare_dense_twin")


def test_the_table_has_every_domain_and_their_mean(tool):
    rre = [{"en": 5.0, "zh": 6.0}, {"en": 5.2, "zh": 6.0}, {"en": 5.1, "zh": 6.0}]
    dense = [{"en": 5.3, "zh": 6.5}, {"en": 5.4, "zh": 6.5}, {"en": 5.5, "zh": 6.5}]

    table = tool.format_table({"rre": rre, "dense": dense}, tool.paired_differences(rre, dense))

    _, *rows = (line.split() for line in table.splitlines())
    assert rows == [
        ["en", f"{math.exp(5.1):.1f}", f"{math.exp(5.4):.1f}", "-0.300", "±", "0.248"],
        ["zh", f"{math.exp(6.0):.1f}", f"{math.exp(6.5):.1f}", "-0.500", "±", "0.000"],
        ["mean", f"{math.exp(5.55):.1f}", f"{math.exp(5.95):.1f}", "-0.400", "±", "0.124"],
    ]


@pytest.mark.slow
def test_both_models_train_and_are_compared(tool, tiny_overrides, tmp_path):
    overrides = tiny_overrides | {"training.output_dir": str(tmp_path)}
    overrides.pop("training.run_name")
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    runs = tool.Runs(str(empty), overrides)

    losses = {variant: tool.train(runs, variant, 0) for variant in tool.VARIANTS}

    assert losses["rre"].keys() == losses["dense"].keys() == {"bilingual", "zh", "en", "code"}
    assert losses["rre"] != losses["dense"]
