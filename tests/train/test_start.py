"""Where a training may start: never where it would silently repeat steps and overwrite what is there."""

import json

import pytest

from mindpangu.checkpoint import CheckpointWriter
from mindpangu.config.run_folder import RunFolder
from mindpangu.errors import TrainingError
from mindpangu.train.start import refuse_lost_checkpoints

RECORD = {
    **dict.fromkeys(("loss", "lr", "global_norm", "loss_scale", "per_step_time", "tokens_per_s", "imbalance"), 1.0),
    **dict.fromkeys(("lookup_s", "update_s", "wait_s", "peak_memory"), 0.0),
    **dict.fromkeys(("experts_activated", "bytes_to_device", "bytes_to_host"), 0),
    "overflow": False,
    "domains": {"zh": 1.0},
    "skipped": None,
}


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    return run


def save(folder, step, with_manifest=True):
    with CheckpointWriter(folder.checkpoints, step) as writer:
        writer.write("state.json", b"{}")
    folder.latest.write_text(f"{step}\n")
    if not with_manifest:
        (writer.folder / "manifest.json").unlink()
    return writer.folder


def record_steps(folder, last):
    folder.metrics.write_text("".join(json.dumps({"step": step} | RECORD) + "\n" for step in range(1, last + 1)))


@pytest.mark.parametrize("resume", [False, True])
def test_a_new_run_folder_may_start(folder, resume):
    refuse_lost_checkpoints(folder, resume, save_steps=10)


@pytest.mark.parametrize("resume", [False, True])
def test_the_only_checkpoint_without_manifest_is_refused(folder, resume):
    damaged = save(folder, 10, with_manifest=False)

    with pytest.raises(TrainingError) as refused:
        refuse_lost_checkpoints(folder, resume, save_steps=10)

    assert "has iteration_00000010 without a manifest.json, so training would start at step 1" in str(refused.value)
    assert "remove or rename it" in str(refused.value)
    assert (damaged / "state.json").exists()
    assert folder.latest.exists()


def test_later_checkpoints_without_manifest_are_refused(folder):
    save(folder, 10)
    save(folder, 20, with_manifest=False)
    save(folder, 100_000_000, with_manifest=False)

    with pytest.raises(TrainingError) as refused:
        refuse_lost_checkpoints(folder, True, save_steps=10)

    assert "iteration_00000020, iteration_100000000 without a manifest.json, so training would continue from " in str(
        refused.value
    )
    assert str(refused.value).endswith("or, to continue from iteration_00000010, remove or rename them")


@pytest.mark.parametrize("later_name", ["iteration_00000020.damaged", "kept_iteration_00000020", "iteration_20"])
def test_a_renamed_or_earlier_damaged_checkpoint_is_not_an_obstacle(folder, later_name):
    save(folder, 5, with_manifest=False)
    save(folder, 10)
    later = save(folder, 20, with_manifest=False)
    later.rename(later.with_name(later_name))

    refuse_lost_checkpoints(folder, True, save_steps=10)

    assert (folder.checkpoints / later_name).exists()


def test_lost_checkpoints_are_recognised_by_the_pointer(folder):
    folder.latest.write_text("700\n")

    with pytest.raises(
        TrainingError, match=r"names the checkpoint of step 700\. Copy the .* start over at step 1, without --re"
    ):
        refuse_lost_checkpoints(folder, True, save_steps=10)


def test_lost_checkpoints_are_recognised_by_the_metrics(folder):
    record_steps(folder, 21)

    with pytest.raises(TrainingError, match=r"goes up to step 21, with checkpoints every 10 steps"):
        refuse_lost_checkpoints(folder, True, save_steps=10)


@pytest.mark.parametrize("last", [1, 9, 10, 20])
def test_a_run_that_failed_before_its_first_checkpoint_may_resume(folder, last):
    """With checkpoint.async_save, training goes on to the step of the second checkpoint before the first one fails."""
    record_steps(folder, last)

    refuse_lost_checkpoints(folder, True, save_steps=10)


@pytest.mark.parametrize("content", [b" 7 ", b"9" * 18 + b"\n", b"\n" * 63 + b"7"])
def test_a_pointer_may_be_written_in_many_ways(folder, content):
    folder.latest.write_bytes(content)

    with pytest.raises(TrainingError, match=f"names the checkpoint of step {int(content)}\\."):
        refuse_lost_checkpoints(folder, True, save_steps=10)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"-3\n", b"12 34", b"9" * 19, b"7" + b"\n" * 64])
def test_a_pointer_that_names_no_step_proves_nothing(folder, content):
    folder.latest.write_bytes(content)

    refuse_lost_checkpoints(folder, True, save_steps=10)


@pytest.mark.parametrize("resume", [False, True])
def test_the_pointer_of_a_training_with_a_checkpoint_stays(folder, resume):
    save(folder, 10)

    refuse_lost_checkpoints(folder, resume, save_steps=10)

    assert folder.latest.read_text() == "10\n"


def test_starting_anew_is_asked_for_by_leaving_out_resume(folder):
    folder.latest.write_text("700\n")
    record_steps(folder, 700)

    refuse_lost_checkpoints(folder, False, save_steps=10)

    assert not folder.latest.exists()  # else a restart of the new training would be refused before its first checkpoint
