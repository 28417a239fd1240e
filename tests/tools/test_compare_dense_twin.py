"""The statistics of the comparison with the dense twin (the training itself is in the slow suite)."""

import math

import pytest


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("compare_dense_twin")


def test_paired_differences_and_their_interval(tool):
    rre = [{"en": 5.0, "zh": 6.0}, {"en": 5.2, "zh": 6.0}, {"en": 5.1, "zh": 6.0}]
    dense = [{"en": 5.3, "zh": 6.5}, {"en": 5.4, "zh": 6.5}, {"en": 5.5, "zh": 6.5}]
    differences = tool.compare(rre, dense)
    assert differences["en"]["mean"] == pytest.approx(-0.3)
    # differences −0.3, −0.2, −0.4: standard deviation 0.1; t(0.975, 2) = 4.303
    assert differences["en"]["half_width"] == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    assert differences["zh"] == {"mean": -0.5, "half_width": 0.0}
    assert differences["mean"]["mean"] == pytest.approx(-0.4)
    table = tool.format_table({"rre": rre, "dense": dense}, differences)
    assert "-0.300 ± 0.248" in table


@pytest.mark.slow
def test_both_models_train_and_are_compared(tool, tiny_overrides, tmp_path):
    overrides = tiny_overrides | {"training.output_dir": str(tmp_path)}
    overrides.pop("training.run_name")
    words = [word for key, value in overrides.items() for word in (f"--{key}", value)]
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    trainings = tool.Runs(str(empty), words)
    losses = {variant: tool.run(trainings, variant, 0) for variant in tool.VARIANTS}
    assert losses["rre"].keys() == losses["dense"].keys() == {"bilingual", "zh", "en", "code"}
    assert losses["rre"] != losses["dense"]
