"""`mindpangu tiny inherit`: parent, child, training, report, and mistakes."""

import json
import shutil
from pathlib import Path

import pytest

from mindpangu.checkpoint import CheckpointReader
from mindpangu.checkpoint.dense import DenseFiles
from mindpangu.cli.main import main

PARENT = {
    "model.rre_layers": "0",
    "model.num_layers": "4",
    "training.steps": "2",
    "lr_scheduler.warmup_steps": "0",
}
CHILD = {
    "model.num_layers": "3",
    "model.hidden_size": "8",
    "model.num_heads": "1",
    "model.ffn_hidden_size": "10",
}
KEEP = ["--keep-first", "1", "--keep-last", "1"]


def options(overrides):
    return [word for key, value in overrides.items() for word in (f"--{key}", value)]


@pytest.fixture(scope="module")
def family(tiny_overrides, pangu_pi, tmp_path_factory):
    """(output folder, options of the parent, options of the child)."""
    output = tmp_path_factory.mktemp("inherit")
    source = Path(tiny_overrides["training.output_dir"]) / "prepared"
    for name in ("parent", "child"):
        shutil.copytree(source, output / name, ignore=shutil.ignore_patterns("routing"))
    words = tiny_overrides | pangu_pi | PARENT | {"training.output_dir": str(output)}
    parent = words | {"training.run_name": "parent"}
    child = words | CHILD | {"training.run_name": "child"}
    assert main(["train", *options(parent)]) == 0
    return output, options(parent), options(child)


def inherit(family, out, *words, child=None):
    output, _, default_child = family
    command = ["tiny", "inherit", "--parent", str(output / "parent"), "--out", str(out), *words]
    return main([*command, *(child or default_child)])


def test_a_child_inherits_and_is_trained_further(family, capsys):
    output, _, child = family
    words = ("--neurons", "taylor", "--calibration-batches", "2", *KEEP)

    assert inherit(family, output / "inherited", *words) == 0

    printed = capsys.readouterr().out
    assert "3 of 4 layers" in printed
    assert "may have seen" not in printed
    report = json.loads((output / "inherited" / "report.json").read_text())
    assert (output / "inherited" / "report.txt").read_text("utf-8").strip() in printed
    assert (output / "inherited" / "layers.png").stat().st_size > 5000
    assert sorted({0, 3} & set(report["kept"]["layers"])) == [0, 3]
    assert len(report["windows"]) == 4 + 3 + 2
    shapes = DenseFiles(CheckpointReader(output / "inherited")).shapes
    assert shapes["blocks.2.ffn.gate.weight"] == (8, 10)
    assert shapes["blocks.0.shortcut.down.weight"] == (8, 2)

    assert main(["train", "--load", str(output / "inherited"), *child]) == 0
    assert CheckpointReader(output / "child").step == 2


def test_held_out_text_that_the_parent_may_have_seen_is_reported(family, capsys):
    """A child with another data seed holds out other text, which the parent was trained on."""
    output, _, child = family
    child = [*child, "--training.run_name", "other", "--data.seed", "5"]
    shutil.copytree(output / "child" / "tokenizer", output / "other" / "tokenizer")
    assert main(["data", "prepare", *child]) == 0
    capsys.readouterr()
    words = ("--neurons", "l2", "--calibration-batches", "1", *KEEP)

    assert inherit(family, output / "of_other", *words, child=child) == 0

    printed = capsys.readouterr().out
    assert "the parent was not trained on these token shards; it may have seen the held-out text" in printed


@pytest.mark.slow
@pytest.mark.parametrize("method", ["learned", "l2", "l1", "random"])
def test_every_method_gives_a_child(method, family, tmp_path):
    words = ("--neurons", method, "--calibration-batches", "1", "--mask-steps", "3", *KEEP)

    assert inherit(family, tmp_path / "out", *words) == 0

    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {len(each) for each in report["kept"]["neurons"].values()} == {10}


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        (["--neurons", "l3"], {}, "--neurons is 'l3'; choose one of"),
        (["--calibration-batches", "0"], {}, "--calibration-batches is 0"),
        (["--mask-steps", "0"], {}, "--mask-steps is 0"),
        ([], {}, "--keep-first 2 and --keep-last 2 keep 4 layers"),
        ([], {"model.num_heads": "2"}, "with model.num_heads 2, model.hidden_size must be 16, not 8"),
        ([], {"model.rre_layers": "1"}, "model.rre_layers of the child is 1"),
        ([], {"training.run_name": "elsewhere"}, "mindpangu data prepare"),
    ],
)
def test_mistakes_are_one_message_and_write_nothing(words, changes, message, family, tmp_path, capsys):
    child = [*family[2], *options(changes)]

    assert inherit(family, tmp_path / "out", *words, child=child) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_existing_checkpoint_is_not_overwritten(family, capsys):
    assert inherit(family, family[0] / "parent", *KEEP) == 1
    assert "already has a checkpoint" in capsys.readouterr().err
