"""The folder of a run's checkpoints: the newest has the highest step; pruning keeps what was just written."""

import os
import threading

import pytest

from mindpangu.checkpoint import (
    CheckpointReader,
    CheckpointWriter,
    clean_interrupted,
    finish_publishing,
    incomplete_iterations,
)
from mindpangu.checkpoint.directory import (
    checkpoints_sharing,
    is_iteration,
    iteration_folder,
    latest_iteration,
    list_iterations,
    prune,
    remove,
)
from mindpangu.checkpoint.manifest import MANIFEST
from mindpangu.errors import CheckpointError
from mindpangu.locks import locked, scratch_path, unique_name


def save(parent, step):
    with CheckpointWriter(parent, step) as writer:
        writer.write("state.json", b"content")
    return writer.folder


def steps(parent):
    return sorted(int(path.name.removeprefix("iteration_")) for path in parent.glob("iteration_*"))


@pytest.mark.parametrize(("keep_last", "left"), [(1, [30]), (2, [30, 900]), (3, [20, 30, 900])])
def test_the_checkpoint_that_was_just_written_is_never_pruned(tmp_path, keep_last, left):
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
        writer.write("state.json", b"content")
        cleaner = threading.Thread(target=clean_interrupted, args=[tmp_path])
        cleaner.start()
        cleaner.join()
        assert writer.scratch.exists()
        assert not dead.exists()

    assert CheckpointReader(tmp_path).read("state.json") == b"content"


def test_removing_a_link_to_a_checkpoint_keeps_the_checkpoint(tmp_path):
    target = save(tmp_path / "disk", 1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / target.name).symlink_to(target)

    remove(tmp_path / "run" / target.name)
    remove(tmp_path / "run" / target.name)  # another process was faster

    assert os.listdir(tmp_path / "run") == []
    assert CheckpointReader(target).read("state.json") == b"content"


def test_a_file_that_two_checkpoints_share_is_never_written_through(tmp_path, monkeypatch):
    """A name that is taken is an error, and not the place of a copy."""
    source = CheckpointReader(save(tmp_path / "source", 1))

    with pytest.raises(CheckpointError, match="iteration_00000002 cannot be written: File exists"):
        with CheckpointWriter(tmp_path / "out", 2) as writer:
            writer.take("state.json", source)
            writer.take("state.json", source)
    with pytest.raises(CheckpointError, match="iteration_00000002 cannot be written: File exists"):
        with CheckpointWriter(tmp_path / "out", 2) as writer:
            writer.take("state.json", source)
            writer.write("state.json", b"")

    assert source.read("state.json") == b"content"
    assert sorted(os.listdir(tmp_path)) == ["source"]


STEPS = [7, 99_999_999, 100_000_000, 1_000_000_000]  # names with eight digits and more


@pytest.fixture
def parent(tmp_path):
    for step in (STEPS[2], STEPS[0], STEPS[3], STEPS[1]):
        iteration_folder(tmp_path, step).mkdir()
        (iteration_folder(tmp_path, step) / MANIFEST).write_text("{}")
    return tmp_path


def test_checkpoints_are_listed_by_step(parent):
    assert list_iterations(parent) == [iteration_folder(parent, step) for step in STEPS]
    assert latest_iteration(parent) == parent / "iteration_1000000000"
    assert iteration_folder(parent, 7).name == "iteration_00000007"


@pytest.mark.parametrize("keep", [1, 2, 4, 9])
def test_the_newest_are_kept(parent, keep):
    removed = prune(parent, keep)

    assert list_iterations(parent) == [iteration_folder(parent, step) for step in STEPS[-keep:]]
    assert removed == [iteration_folder(parent, step) for step in STEPS[:-keep]]


def test_the_pointer_names_the_newest_step(parent):
    finish_publishing(parent, parent / "latest", keep_last=2)

    assert (parent / "latest").read_text() == "1000000000\n"
    assert len(list_iterations(parent)) == 2


def test_a_pointer_that_is_right_stays(parent):
    pointer = parent / "latest"
    finish_publishing(parent, pointer, keep_last=4)
    first = pointer.stat()

    finish_publishing(parent, pointer, keep_last=4)

    assert pointer.stat().st_ino == first.st_ino
    assert pointer.stat().st_mtime_ns == first.st_mtime_ns


def test_a_pointer_of_another_step_is_written_again(parent):
    (parent / "latest").write_text("1000000001\n")

    finish_publishing(parent, parent / "latest", keep_last=4)

    assert (parent / "latest").read_text() == "1000000000\n"


def test_without_a_checkpoint_there_is_no_pointer(tmp_path):
    finish_publishing(tmp_path, tmp_path / "latest", keep_last=2)

    assert latest_iteration(tmp_path) is None
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    ["iteration_000000007", "iteration_7", "iteration_0000000a", "iteration_00000007.old", "iteration_1" + 13 * "0"],
)
def test_folders_with_other_names_are_no_checkpoints(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / MANIFEST).write_text("{}")

    assert list_iterations(tmp_path) == []
    assert incomplete_iterations(tmp_path) == []


@pytest.mark.parametrize(("name", "named_like_one"), [("iteration_00000007", True), ("iteration_7", False)])
def test_names_of_checkpoints(tmp_path, name, named_like_one):
    assert is_iteration(tmp_path / name) == named_like_one


@pytest.mark.parametrize(
    ("complete", "expected"), [([], [1, 2, 3]), ([1], [2, 3]), ([2], [3]), ([1, 3], []), ([3], [])]
)
def test_folders_without_manifest_count_after_the_newest_complete_one(tmp_path, complete, expected):
    for step in (2, 3, 1):
        iteration_folder(tmp_path, step).mkdir()
    for step in complete:
        (iteration_folder(tmp_path, step) / MANIFEST).write_text("{}")

    assert incomplete_iterations(tmp_path) == [iteration_folder(tmp_path, step) for step in expected]


def test_the_checkpoints_that_share_a_file_are_listed(tmp_path):
    first = CheckpointReader(save(tmp_path, 1))
    for step in (4, 3):
        with CheckpointWriter(tmp_path, step) as writer:
            writer.take("state.json", first)
    save(tmp_path, 2)  # the same content, but a file of its own
    (save(tmp_path, 5) / "state.json").unlink()

    sharing = checkpoints_sharing(tmp_path / "iteration_00000003", "state.json")

    assert sharing == [tmp_path / "iteration_00000001", tmp_path / "iteration_00000004"]
    assert checkpoints_sharing(tmp_path / "iteration_00000002", "state.json") == []


@pytest.mark.parametrize("kind", ["writing", "deleting"])
def test_leftovers_of_earlier_versions_are_removed_unless_they_are_in_use(tmp_path, monkeypatch, kind):
    """A live process is not waited for."""
    in_use = tmp_path / f".iteration_00000001.{kind}"
    dead = tmp_path / f".iteration_00000002.{kind}"
    other = tmp_path / ".iteration_notes"
    for folder in (in_use, dead, other):
        folder.mkdir()
    holds = threading.Event()
    may_end = threading.Event()

    def hold():
        with locked(tmp_path / "iteration_00000001"):
            in_use.mkdir(exist_ok=True)
            holds.set()
            may_end.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    holds.wait()
    monkeypatch.setattr("mindpangu.locks.time.sleep", lambda seconds: pytest.fail("it waits"))

    try:
        clean_interrupted(tmp_path)
    finally:
        may_end.set()
        holder.join()

    assert in_use.exists()
    assert not dead.exists()
    assert other.exists()
