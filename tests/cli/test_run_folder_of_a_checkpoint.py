"""A verb that takes its configuration from a checkpoint writes in the run folder that the checkpoint is in.

The configuration in a checkpoint may come from another machine, or from somebody who would like to choose the place.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

from mindpangu.checkpoint import CheckpointReader
from mindpangu.cli import evaluate, finetune, generate
from mindpangu.cli.main import main
from mindpangu.cli.tiny import rounds
from mindpangu.config import load_config
from mindpangu.config.run_folder import RunFolder
from mindpangu.language_model import ModelParts
from tests.checkpoint.forging import forge_config

OLDER = Path(__file__).parents[1] / "fixtures" / "written_by_0_1_0"
CHECKPOINT = "run/checkpoint/iteration_00000004"

VERBS = {
    "evaluate": (evaluate, "", ["evaluate"]),
    "generate": (generate, "", ["generate", "--every-domain"]),
    "finetune": (finetune, "_finetuned", ["finetune", "--data", "records.jsonl"]),
    "tiny rounds": (rounds, "_rounds", ["tiny", "rounds"]),
}


@pytest.fixture(autouse=True)
def stranger(tmp_path, monkeypatch):
    """A run whose author would like others to write elsewhere. The current directory is the folder that holds it."""
    shutil.copytree(OLDER, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    record = {"domain": "zh", "task": "qa", "question": "打开", "answer": "窗口"}
    Path("records.jsonl").write_text(json.dumps(record) + "\n")
    forge_config(
        Path(CHECKPOINT),
        {
            "training.output_dir": str(tmp_path / "elsewhere"),
            "training.run_name": "precious",
            "experts.storage": "mapped",
            "experts.storage_folder": str(tmp_path / "elsewhere" / "scratch"),
        },
    )


@pytest.fixture
def run_folders(monkeypatch):
    """The run folders of the verbs that were called; they do nothing else."""
    called = []
    for verb, *_ in VERBS.values():
        monkeypatch.setattr(verb, "run", lambda options, config: called.append(config))
    return called


def real(config):
    return os.path.realpath(RunFolder.from_config(config).root)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("named", ["run", "run/checkpoint", CHECKPOINT])
def test_a_verb_writes_where_the_checkpoint_is(run_folders, verb, named):
    _, suffix, words = VERBS[verb]

    assert main([*words, "--checkpoint", named]) == 0

    (config,) = run_folders
    assert RunFolder.from_config(config).root == Path(f"run{suffix}")
    assert config.experts.storage_folder == ""
    assert not Path("../elsewhere").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_a_run_may_be_moved(run_folders, tmp_path, verb):
    _, suffix, words = VERBS[verb]
    Path("run").rename(tmp_path / "renamed")

    assert main([*words, "--checkpoint", str(tmp_path / "renamed")]) == 0

    (config,) = run_folders
    assert RunFolder.from_config(config).root == tmp_path / f"renamed{suffix}"


@pytest.mark.parametrize("verb", VERBS)
def test_a_checkpoint_outside_a_run_keeps_its_name_in_the_default_folder(run_folders, tmp_path, verb):
    _, suffix, words = VERBS[verb]
    Path(CHECKPOINT).rename("iteration_00000004")

    assert main([*words, "--checkpoint", "iteration_00000004"]) == 0

    (config,) = run_folders
    assert RunFolder.from_config(config).root == Path(f"output/precious{suffix}")


@pytest.mark.parametrize("verb", VERBS)
def test_the_user_may_choose_another_folder(run_folders, verb):
    _, _, words = VERBS[verb]
    mine = ["--training.output_dir", "mine", "--training.run_name", "my_run", "--experts.storage_folder", "ssd"]

    assert main([*words, "--checkpoint", "run", *mine]) == 0

    (config,) = run_folders
    assert RunFolder.from_config(config).root == Path("mine/my_run")
    assert config.experts.storage_folder == "ssd"


@pytest.mark.parametrize(
    ("directory", "named"),
    [
        ("run", "."),
        ("run", "checkpoint"),
        ("run/checkpoint", "."),
        ("run/checkpoint", "iteration_00000004"),
        ("run/data", ".."),
        ("run/data", "../checkpoint"),
        (CHECKPOINT, "."),
    ],
)
def test_the_current_folder_may_be_anywhere_in_the_run(run_folders, tmp_path, monkeypatch, directory, named):
    monkeypatch.chdir(tmp_path / "here" / directory)

    assert main(["evaluate", "--checkpoint", named]) == 0

    (config,) = run_folders
    assert real(config) == os.path.realpath(tmp_path / "here" / "run")


def test_the_checkpoints_may_be_on_another_disk(run_folders, tmp_path):
    Path("run/checkpoint").rename(tmp_path / "disk")
    Path("run/checkpoint").symlink_to(tmp_path / "disk")

    assert main(["evaluate", "--checkpoint", "run"]) == 0

    (config,) = run_folders
    assert RunFolder.from_config(config).root == Path("run")


@pytest.mark.parametrize("where", ["renamed", "renamed/checkpoint/iteration_00000004"])
def test_the_configuration_of_a_moved_run_continues_there(run_folders, where):
    Path("run").rename("renamed")

    assert main(["evaluate", "--config", f"{where}/config.yaml"]) == 0

    (config,) = run_folders
    assert RunFolder.from_config(config).root == Path("renamed")


def test_a_configuration_that_the_user_wrote_says_where_to_write(run_folders):
    Path("mine.yaml").write_text("training: {output_dir: mine, run_name: my_run}\n")

    assert main(["evaluate", "--config", "mine.yaml"]) == 0

    (config,) = run_folders
    assert RunFolder.from_config(config).root == Path("mine/my_run")


def test_a_model_that_is_only_read_maps_its_experts_there_too():
    config = ModelParts.from_checkpoint(CheckpointReader(Path("run"))).config

    assert (config.experts.storage, config.experts.storage_folder) == ("mapped", "")
    assert RunFolder.from_config(config).root == Path("run")


def test_the_user_may_choose_where_experts_are_mapped_that_are_only_read():
    mine = load_config(None, {"experts.storage": "mapped", "experts.storage_folder": "ssd"}).experts

    config = ModelParts.from_checkpoint(CheckpointReader(Path("run")), experts=mine).config

    assert config.experts.storage_folder == "ssd"


def test_a_verb_with_its_own_output_still_takes_the_checkpoints_configuration(capsys):
    """`extract` and `experts` compare the configuration with the saved one, whose paths are others."""
    assert main(["experts", "list", "--checkpoint", "run"]) == 0
    assert main(["extract", "--domains", "zh", "--checkpoint", "run", "--out", "zh"]) == 0

    saved = CheckpointReader(Path("zh")).config().training
    assert (Path(saved.output_dir).name, saved.run_name) == ("elsewhere", "precious")
    assert main(["experts", "list", "--checkpoint", "run", "--training.run_name", "other"]) == 1
    assert "leave out --training.run_name" in capsys.readouterr().err


@pytest.mark.slow
def test_an_evaluation_lands_in_the_run_folder(tmp_path):
    Path("run/evaluation.json").unlink()

    assert main(["evaluate", "--checkpoint", "run"]) == 0

    assert Path("run/evaluation.json").is_file()
    assert not (tmp_path / "elsewhere").exists()
