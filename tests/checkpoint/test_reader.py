"""The reader of a checkpoint: which one it opens, what it finds to be wrong, and what it does when others prune."""

import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import save as encode_tensors

from mindpangu.checkpoint import CheckpointReader, CheckpointWriter
from mindpangu.checkpoint import reader as reader_module
from mindpangu.errors import CheckpointError
from mindpangu.pruned import retry_if_pruned
from tests.fuzz.readers import OLDER

FILES = {"state.json": b'{"a": [1]}', "dense_00000_of_00001.safetensors": encode_tensors({"a": np.ones(3, np.float32)})}


def save(parent, step, files=FILES):
    with CheckpointWriter(parent, step) as writer:
        for name, data in files.items():
            writer.write(name, data)
    return writer.folder


def test_a_run_its_folder_of_checkpoints_and_a_checkpoint_can_be_opened(tmp_path):
    first, second = (save(tmp_path / "checkpoint", step) for step in (1, 2))

    readers = [CheckpointReader(path) for path in (tmp_path, tmp_path / "checkpoint", first)]

    assert [reader.folder for reader in readers] == [second, second, first]
    assert [reader.named_explicitly for reader in readers] == [False, False, True]
    assert [reader.step for reader in readers] == [2, 2, 1]


def test_a_checkpoint_that_was_pruned_is_named_with_the_newest(tmp_path):
    save(tmp_path, 5)

    with pytest.raises(CheckpointError, match=r"there is no \S+iteration_00000003: .* newest .* is iteration_00000005"):
        CheckpointReader(tmp_path / "iteration_00000003")


@pytest.mark.parametrize("name", ["iteration_00000003", "other"])
def test_a_folder_without_checkpoint_is_named(tmp_path, name):
    """Its neighbours are not offered: it is there, or is named like no checkpoint."""
    save(tmp_path, 5)
    if name != "other":
        (tmp_path / name).mkdir()

    with pytest.raises(CheckpointError, match=f"there is no complete checkpoint in .*{name}$"):
        CheckpointReader(tmp_path / name)


def test_a_damaged_later_checkpoint_is_not_passed_over(tmp_path):
    save(tmp_path / "checkpoint", 5)
    (save(tmp_path / "checkpoint", 6) / "manifest.json").unlink()

    for path in (tmp_path, tmp_path / "checkpoint"):
        with pytest.raises(CheckpointError, match=r"has iteration_00000006 without .* to use iteration_00000005"):
            CheckpointReader(path)

    assert CheckpointReader(tmp_path / "checkpoint" / "iteration_00000005").step == 5


def test_an_earlier_damaged_checkpoint_is_not_an_obstacle(tmp_path):
    (save(tmp_path, 5) / "manifest.json").unlink()
    save(tmp_path, 6)

    assert CheckpointReader(tmp_path).step == 6


def test_nothing_is_offered_where_there_is_nothing(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no complete checkpoint in .*iteration_00000003$"):
        CheckpointReader(tmp_path / "iteration_00000003")


@pytest.mark.parametrize(("num_pruned", "opens"), [(0, True), (4, True), (5, False)])
def test_checkpoints_that_are_pruned_before_they_are_opened_are_passed_over(tmp_path, monkeypatch, num_pruned, opens):
    folder = save(tmp_path, 5)
    found = [tmp_path / f"iteration_{step:08d}" for step in range(num_pruned)] + [folder]
    monkeypatch.setattr(reader_module, "latest_iteration", lambda parent: found.pop(0))

    if opens:
        assert CheckpointReader(tmp_path).folder == folder
        assert found == []
    else:
        with pytest.raises(CheckpointError, match="are pruned faster than they can be opened; read a copy"):
            CheckpointReader(tmp_path)


def test_a_damaged_manifest_of_the_newest_checkpoint_is_not_passed_over(tmp_path):
    save(tmp_path, 1)
    (save(tmp_path, 2) / "manifest.json").write_text("{")

    with pytest.raises(CheckpointError, match=r"iteration_00000002/manifest\.json cannot be read"):
        CheckpointReader(tmp_path)


def test_a_checkpoint_that_is_removed_or_replaced_is_noticed(tmp_path):
    reader = CheckpointReader(save(tmp_path, 1))
    assert not reader.was_removed()

    save(tmp_path, 1, {"state.json": b"other"})
    assert reader.was_removed()

    save(tmp_path, 1)
    assert not reader.was_removed()

    shutil.rmtree(reader.folder)
    assert reader.was_removed()


def test_work_whose_checkpoint_was_pruned_is_repeated_with_the_newest(tmp_path):
    save(tmp_path, 1)

    def work():
        reader = CheckpointReader(tmp_path)
        if reader.step == 1:
            save(tmp_path, 2)
            shutil.rmtree(reader.folder)
        return reader.read("state.json"), reader.step

    assert retry_if_pruned(work, log=lambda text: None) == (FILES["state.json"], 2)


def test_files_are_read_as_they_were_written(tmp_path):
    reader = CheckpointReader(save(tmp_path, 1))

    for name, data in FILES.items():
        assert reader.read(name) == data
        assert reader.verify(name) == reader.require_size(name) == reader.folder / name
    assert reader.json("state.json") == {"a": [1]}
    assert reader.tensors("dense_00000_of_00001.safetensors")["a"].tolist() == [1, 1, 1]
    with pytest.raises(CheckpointError, match=r"dense_\S+ cannot be read: .*; copy it again"):
        reader.json("dense_00000_of_00001.safetensors")
    with pytest.raises(CheckpointError, match=r"state\.json is not a safetensors file of a checkpoint"):
        reader.tensors("state.json")


@pytest.mark.parametrize("use", ["read", "verify", "require_size"])
def test_a_file_of_another_size_is_noticed_before_it_is_used(tmp_path, use):
    folder = save(tmp_path, 1)
    (folder / "state.json").write_bytes(FILES["state.json"][:-1])

    with pytest.raises(CheckpointError, match=r"has 9 bytes, its manifest says 10; copy it again, or remove this"):
        getattr(CheckpointReader(folder), use)("state.json")


@pytest.mark.parametrize("use", ["read", "verify"])
def test_other_content_is_noticed_before_it_is_used(tmp_path, use):
    folder = save(tmp_path, 1)
    (folder / "state.json").write_bytes(FILES["state.json"][::-1])

    with pytest.raises(CheckpointError, match=r"state\.json was altered: .*; copy it again, or remove this checkpoint"):
        getattr(CheckpointReader(folder), use)("state.json")
    assert CheckpointReader(folder).require_size("state.json").exists()


class Unreadable:
    """An open file whose disk, or the memory for its content, fails."""

    def __init__(self, error):
        self._error = error

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def read(self, size=-1):
        raise self._error


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        ("read", OSError(5, "Input/output error"), "Input/output error"),
        ("read", MemoryError(), "memory"),
        ("verify", OSError(5, "Input/output error"), "Input/output error"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch, use, error, message):
    reader = CheckpointReader(save(tmp_path, 1))
    monkeypatch.setattr(reader, "_open", lambda name: Unreadable(error))

    with pytest.raises(CheckpointError, match=rf"(?i)state\.json cannot be read: .*{message}.*; copy it again"):
        getattr(reader, use)("state.json")


def test_all_checkpoints_that_share_a_damaged_file_are_named(tmp_path):
    first = CheckpointReader(save(tmp_path, 1))
    for step in (2, 3):
        with CheckpointWriter(tmp_path, step) as writer:
            writer.take("state.json", first)
    (first.folder / "state.json").write_bytes(b"short")

    with pytest.raises(CheckpointError, match=r"iteration_00000002, iteration_00000003 have the same .* and those to"):
        first.read("state.json")

    shutil.rmtree(tmp_path / "iteration_00000003")
    with pytest.raises(CheckpointError, match=r"iteration_00000002 has the same .* and that to"):
        first.read("state.json")


def test_the_configuration_is_that_of_the_training_unless_keys_are_overridden(tmp_path):
    shutil.copytree(OLDER / "run", tmp_path / "moved")
    reader = CheckpointReader(tmp_path / "moved")

    local = reader.local_settings()

    assert reader.config().training.run_name == "run"
    assert reader.config({"training.steps": "9"}).training.steps == 9
    assert reader.config(local).training.run_name == "moved"
    assert reader.config(local).training.output_dir == str(tmp_path)
    assert local["experts.storage_folder"] == ""


def test_a_file_of_the_wrong_size_is_closed_again(tmp_path):
    folder = save(tmp_path, 1)
    (folder / "state.json").write_bytes(b"short")
    reader = CheckpointReader(folder)
    with pytest.raises(CheckpointError) as kept:  # the error keeps the frame, and with it the file
        reader.read("state.json")

    assert kept.value is not None
    names = [os.path.realpath(f"/proc/self/fd/{each}") for each in os.listdir("/proc/self/fd")]
    assert str(folder / "state.json") not in names
