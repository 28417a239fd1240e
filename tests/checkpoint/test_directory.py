"""The folder of a run's checkpoints: pruning keeps what was just written, and removes only what belongs to nobody."""

import os
import threading

import pytest

from mindpangu.checkpoint import CheckpointReader, CheckpointWriter, clean_interrupted, finish_publishing
from mindpangu.checkpoint.directory import remove
from mindpangu.errors import CheckpointError
from mindpangu.locks import scratch_path, unique_name


def save(parent, step):
    with CheckpointWriter(parent, step) as writer:
        writer.write("config.yaml", b"content")
    return writer.folder


def steps(parent):
    return sorted(int(path.name.removeprefix("iteration_")) for path in parent.glob("iteration_*"))


@pytest.mark.parametrize(("keep_last", "left"), [(1, [30]), (2, [30, 900]), (3, [20, 30, 900])])
def test_what_was_just_written_is_never_pruned(tmp_path, keep_last, left):
    """Even if others are named as if they were later."""
    for step in (10, 20):
        save(tmp_path, step)
    save(tmp_path, 25).rename(tmp_path / "iteration_00000900")

    written = save(tmp_path, 30)
    finish_publishing(tmp_path, tmp_path / "latest", keep_last, written)

    assert steps(tmp_path) == left


def test_a_checkpoint_that_is_being_written_is_not_cleaned_away(tmp_path):
    writer = CheckpointWriter(tmp_path, 1)
    dead = scratch_path(tmp_path / "iteration_00000002", unique_name())
    dead.mkdir()

    with writer:
        writer.write("config.yaml", b"content")
        cleaner = threading.Thread(target=clean_interrupted, args=[tmp_path])
        cleaner.start()
        cleaner.join()
        assert writer.scratch.exists()
        assert not dead.exists()

    assert CheckpointReader(tmp_path).read("config.yaml") == b"content"


def test_a_linked_checkpoint_is_removed_without_what_it_leads_to(tmp_path):
    target = save(tmp_path / "disk", 1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / target.name).symlink_to(target)

    remove(tmp_path / "run" / target.name)
    remove(tmp_path / "run" / target.name)  # another process was faster

    assert os.listdir(tmp_path / "run") == []
    assert CheckpointReader(target).read("config.yaml") == b"content"


def test_a_file_that_two_checkpoints_share_is_never_written_through(tmp_path, monkeypatch):
    """A name that is taken is an error, and not the place of a copy."""
    source = CheckpointReader(save(tmp_path / "source", 1))

    with pytest.raises(CheckpointError, match="iteration_00000002 cannot be written: File exists"):
        with CheckpointWriter(tmp_path / "out", 2) as writer:
            writer.take("config.yaml", source)
            writer.take("config.yaml", source)
    with pytest.raises(CheckpointError, match="iteration_00000002 cannot be written: File exists"):
        with CheckpointWriter(tmp_path / "out", 2) as writer:
            writer.take("config.yaml", source)
            writer.write("config.yaml", b"")

    assert source.read("config.yaml") == b"content"
    assert sorted(os.listdir(tmp_path)) == ["source"]
