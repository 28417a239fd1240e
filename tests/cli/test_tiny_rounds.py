"""`mindpangu tiny rounds`: from another run's checkpoint, twice, help, and mistakes."""

import shutil
from pathlib import Path

import pytest

from mindpangu.checkpoint import CheckpointReader
from mindpangu.cli.main import main


def options(overrides):
    return [word for key, value in overrides.items() for word in (f"--{key}", value)]


@pytest.fixture(scope="module")
def trained(tiny_overrides, tmp_path_factory):
    """(output folder, options) of a dense run with a trained round 1."""
    output = tmp_path_factory.mktemp("rounds")
    source = Path(tiny_overrides["training.output_dir"]) / "prepared"
    shutil.copytree(source, output / "base", ignore=shutil.ignore_patterns("routing"))
    changes = {"training.output_dir": str(output), "training.run_name": "base", "model.rre_layers": "0"}
    words = options(tiny_overrides | changes)
    assert main(["train", *words]) == 0
    return output, words


def test_rounds_from_a_checkpoint_get_their_own_run_and_are_skipped_the_second_time(trained, capsys, without_mindspore):
    output, _ = trained
    before = {path: path.read_bytes() for path in (output / "base").rglob("*") if path.is_file()}
    words = ["tiny", "rounds", "--checkpoint", str(output / "base"), "--parts", "2", "--rounds", "2"]

    assert main(words) == 0

    printed = capsys.readouterr().out
    assert "rounds: took round 1 from" in printed
    assert "rounds: round 2 trains on 3 of 6 batches" in printed
    assert f"rounds: round 2 is done → {output / 'base_rounds'}" in printed
    assert CheckpointReader(output / "base_rounds").step == 9
    assert (output / "base_rounds" / "report.md").exists()
    assert {path: path.read_bytes() for path in (output / "base").rglob("*") if path.is_file()} == before
    assert "rounds: up to date, round 2 is done" in without_mindspore(words)
    assert main(["evaluate", "--checkpoint", str(output / "base_rounds")]) == 0


def test_mistakes_are_reported_in_one_message(trained, tmp_path, capsys):
    output, words = trained

    def refuse(message, *more):
        assert main(["tiny", "rounds", *words, *more]) == 1
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.startswith("mindpangu: error: ")

    refuse("--rate is 2.0; allowed: > 0 and <= 1", "--rate", "2")
    refuse("--losses is 'easy'; allowed: frozen, recorded", "--losses", "easy")
    refuse("--parts is 8, but a round has 6 batches (training.steps); lower --parts")
    refuse("--rate 0.1 of 1 to 1 batches in a part is less than one batch", "--rate", "0.1", "--parts", "6")
    refuse("asks for 2 processes, but rounds are trained in one", "--parallelism.data_parallel", "2")
    refuse("there is no complete checkpoint", "--checkpoint", str(tmp_path))
    refuse("unknown key training.step", "--training.step", "3")
    early = ("--checkpoint", str(output / "base" / "checkpoint" / "iteration_00000004"), "--training.run_name", "other")
    refuse("step 4; further rounds begin at the end of round 1, which is step 6", *early, "--parts", "2")
    other = ("--checkpoint", str(output / "base"), "--training.run_name", "other")
    refuse("--parts is 7, but a round has 6 batches", "--parts", "7", *other)
    refuse("optimizer.eps was 1e-08, is 0.1", "--parts", "2", "--optimizer.eps", "0.1", *other)
    assert not (output / "other").exists()  # nothing was copied
    # refused before any loss is computed, which may take hours
    assert not (output / "base" / "rounds").exists()


def test_a_checkpoint_outside_of_a_run_folder_is_refused(trained, tmp_path, capsys):
    output, _ = trained
    shutil.copytree(output / "base" / "checkpoint" / "iteration_00000006", tmp_path / "alone" / "x" / "iteration_6")
    words = ["--checkpoint", str(tmp_path / "alone" / "x" / "iteration_6"), "--training.run_name", "of_alone"]

    assert main(["tiny", "rounds", *words, "--parts", "2"]) == 1
    assert f"is not in a run folder: {tmp_path / 'alone' / 'tokenizer'} is missing" in capsys.readouterr().err
    assert not (output / "of_alone" / "checkpoint").exists()


def test_help(capsys):
    for words in (["tiny", "--help"], ["tiny", "rounds", "--help"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0
        assert "rounds" in capsys.readouterr().out


def test_the_configuration_is_accepted_before_and_after_the_action(capsys):
    for words in (["tiny", "--config", "no.yaml", "rounds"], ["tiny", "rounds", "--config", "no.yaml"]):
        assert main(words) == 1
        assert "configuration file no.yaml does not exist" in capsys.readouterr().err
