"""`mindpangu tiny architecture` and `mindpangu tiny batch-size`: lists, the rule, help, and mistakes."""

import pytest

from mindpangu.cli.main import main


def options(overrides):
    return [word for key, value in overrides.items() for word in (f"--{key}", value)]


@pytest.fixture
def words(tiny_overrides):
    return options(tiny_overrides | {"model.rre_layers": "0"})


def test_the_list_of_points_trains_nothing_and_writes_nothing(words, tmp_path, capsys):
    command = ["tiny", "architecture", *words, "--budget", "40K", "--width", "16:64", "--points", "3"]

    assert main([*command, "--out", str(tmp_path / "out"), "--list"]) == 0

    printed = capsys.readouterr().out
    assert "architecture: 3 of " in printed
    assert "points of 40K parameters ± 2.0%, depth 2:8, width 16:64 in steps of 8, expansion 1:4" in printed
    assert len(printed.splitlines()) == 5
    assert not (tmp_path / "out").exists()

    assert main([*command, "--list"]) == 0
    assert capsys.readouterr().out == printed


def test_a_search_without_an_output_folder_is_refused(words, capsys):
    command = ["tiny", "architecture", *words, "--budget", "40K", "--width", "16:64", "--points", "3"]

    assert main(command) == 1

    assert "a search needs --out" in capsys.readouterr().err


def test_the_rule_prints_a_rate_per_batch(capsys):
    assert main(["tiny", "batch-size", "--rule", "--batches", "1M,2M,4M"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "batch 1,000,000: learning rate 0.0001",
        "batch 2,000,000: learning rate 0.000141",
        "batch 4,000,000: learning rate 0.0002",
    ]

    rule = ["--base-batch", "8", "--base-rate", "1e-3", "--exponent", "1"]
    assert main(["tiny", "batch-size", "--rule", "--batches", "32", *rule]) == 0
    assert capsys.readouterr().out == "batch 32: learning rate 0.004\n"


def test_mistakes_are_reported_in_one_message(words, tmp_path, capsys):
    def refuse(message, *command):
        assert main(["tiny", *command, *words]) == 1
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.startswith("mindpangu: error: ")

    out = ("--out", str(tmp_path / "out"))
    refuse("--budget is '2X'; allowed: a whole number above 0", "architecture", "--budget", "2X", *out)
    refuse("--budget 1,000,000,000 is out of reach", "architecture", "--budget", "1B", *out)
    refuse("--depth is '8:2'; allowed: LOWEST:HIGHEST", "architecture", "--budget", "40K", "--depth", "8:2", *out)
    refuse("--head-size is 0; allowed: >= 1", "architecture", "--budget", "40K", "--head-size", "0", *out)
    refuse("a sweep needs --rates", "batch-size", "--batches", "4,8")
    refuse("--batches is 'four'", "batch-size", "--rule", "--batches", "four")
    sweep = ("batch-size", "--batches", "4,8", "--tokens", "2K", *out)
    refuse("--rates is '1e-3;2'; give learning rates", *sweep, "--rates", "1e-3;2")
    refuse("at least two batches and two rates", *sweep, "--rates", "1e-3")
    refuse("--base-batch is '0'", "batch-size", "--rule", "--batches", "8", "--base-batch", "0")
    assert main(["tiny", "architecture", "--budget", "2M", "--steps", "1", *out]) == 1  # --steps is training.steps
    assert "with training.steps 1 lower the warm-up" in capsys.readouterr().err
    no_process = ("--processes", "0")
    refuse("--processes is 0; allowed: >= 1", *sweep, "--rates", "1e-3,2e-3", *no_process)
    points = ("architecture", "--budget", "40K", "--width", "16:64", "--tolerance", "0.2", "--points", "2")
    refuse("--processes is 0", *points, *no_process, *out)
    (tmp_path / "file").touch()
    refuse(f"--out {tmp_path / 'file'} is a file", *sweep[:-2], "--rates", "1e-3,2e-3", "--out", str(tmp_path / "file"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("action", ["architecture", "batch-size"])
def test_every_action_has_help(action, capsys):
    with pytest.raises(SystemExit) as end:
        main(["tiny", action, "--help"])
    assert end.value.code == 0
    assert f"mindpangu tiny {action}" in capsys.readouterr().out
