"""The writer of a checkpoint: entries of its files, the space that it needs, its lock, and how long ranks wait."""

import errno
import itertools
import os
import shutil
import threading
from types import SimpleNamespace

import pytest

from mindpangu.checkpoint import CheckpointReader, CheckpointWriter, rank_reports
from mindpangu.checkpoint import writer as writer_module
from mindpangu.checkpoint.rank_reports import AnotherRankFailed, RankReports
from mindpangu.errors import CheckpointError, InUseError
from mindpangu.locks import locked

JOB = "job-0123456789abcdef"
NAMES = ("state.json", "experts/rre_00.zh.000.safetensors", "experts/rre_00.zh.001.safetensors")


def save(parent, step):
    with CheckpointWriter(parent, step) as writer:
        entries = {name: writer.write(name, name.encode()) for name in NAMES}
    return entries


def test_the_manifest_has_the_entries_that_were_returned(tmp_path):
    entries = save(tmp_path, 1)

    assert CheckpointReader(tmp_path).files == entries
    assert entries["state.json"]["bytes"] == len("state.json")


def test_files_may_be_written_in_pieces(tmp_path):
    pieces = [b"one", memoryview(b"two"), b""]

    with CheckpointWriter(tmp_path, 1) as writer:
        entry = writer.write("state.json", iter(pieces))

    assert entry["bytes"] == 6
    assert CheckpointReader(tmp_path).read("state.json") == b"onetwo"


@pytest.mark.parametrize("how", ["link", "take"])
def test_files_of_another_checkpoint_keep_their_entries(tmp_path, how):
    entries = save(tmp_path / "source", 1)
    source = CheckpointReader(tmp_path / "source")

    with CheckpointWriter(tmp_path / "out", 2) as writer:
        for name in NAMES:
            if how == "take":
                writer.take(name, source)
            else:
                assert writer.link(name, source.folder, source.files[name])

    out = CheckpointReader(tmp_path / "out")
    assert out.files == entries
    for name in NAMES:
        assert out.verify(name).samefile(source.folder / name)


def test_a_file_that_has_another_size_than_stated_is_not_taken(tmp_path):
    save(tmp_path / "source", 1)
    source = CheckpointReader(tmp_path / "source")
    (source.folder / NAMES[1]).write_bytes(b"short")

    with pytest.raises(CheckpointError, match=r"rre_00\.zh\.000\.safetensors has 5 bytes, its manifest says"):
        with CheckpointWriter(tmp_path / "out", 2) as writer:
            writer.take(NAMES[1], source)

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["link", "take"])
def test_a_file_cannot_be_added_twice(tmp_path, how):
    save(tmp_path / "source", 1)
    source = CheckpointReader(tmp_path / "source")

    with pytest.raises(CheckpointError, match="iteration_00000002 cannot be written: File exists"):
        with CheckpointWriter(tmp_path / "out", 2) as writer:
            writer.write(NAMES[1], b"written")
            if how == "take":
                writer.take(NAMES[1], source)
            else:
                writer.link(NAMES[1], source.folder, source.files[NAMES[1]])


def test_a_checkpoint_may_need_all_space_that_the_disk_has(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    writer = CheckpointWriter(tmp_path, 1)

    writer.require_space(5_000_000)

    with pytest.raises(CheckpointError, match=r"needs 5 MB, but the disk has 5 MB left; free some"):
        writer.require_space(5_000_001)


def test_a_checkpoint_is_locked_while_it_is_written(tmp_path):
    folder = tmp_path / "iteration_00000001"

    def try_to_lock():
        try:
            with locked(folder, wait=0):
                outcomes.append("free")
        except InUseError:
            outcomes.append("in use")

    outcomes = []

    def look():
        thread = threading.Thread(target=try_to_lock)
        thread.start()
        thread.join()

    with CheckpointWriter(tmp_path, 1) as writer:
        writer.write("state.json", b"a")
        look()
    look()
    with pytest.raises(RuntimeError), CheckpointWriter(tmp_path, 1):
        raise RuntimeError
    look()

    assert outcomes == ["in use", "free", "free"]


def test_several_ranks_need_the_name_of_their_job(tmp_path):
    with pytest.raises(AssertionError, match="the ranks need a name"):
        CheckpointWriter(tmp_path, 1, ranks=2)
    assert CheckpointWriter(tmp_path, 1).scratch != CheckpointWriter(tmp_path, 1).scratch
    names = {CheckpointWriter(tmp_path, 1, rank, ranks=2, job=JOB).scratch for rank in range(2)}
    assert len(names) == 1


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self, monkeypatch, after_sleeping=lambda: None):
        self.now = 1000.0
        self.pauses = []
        self._after_sleeping = after_sleeping
        monkeypatch.setattr(writer_module, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self._sleep))

    def _sleep(self, seconds):
        self.now += seconds
        self.pauses.append(seconds)
        assert len(self.pauses) < 10_000, "it would wait forever"
        self._after_sleeping()


@pytest.mark.parametrize(
    ("rank", "timeout", "seconds", "awaited"),
    [
        (0, {"timeout": 100}, 100, "waited for rank 1, but 100 s were not enough"),
        (1, {"timeout": 100}, 111, "waited for rank 0 to publish it, but 111 s were not enough"),
        (0, {}, 1800, "waited for rank 1, but 1800 s were not enough"),
    ],
)
def test_a_rank_looks_less_and_less_often_whether_the_others_are_done(
    tmp_path, monkeypatch, rank, timeout, seconds, awaited
):
    """Rank 0 gives up first, because it can say which rank is late."""
    clock = Clock(monkeypatch)

    with pytest.raises(CheckpointError, match=awaited):
        with CheckpointWriter(tmp_path, 1, rank, ranks=2, job=JOB, **timeout) as writer:
            writer.write("state.json", b"a")

    assert seconds < clock.now - 1000 < seconds + 0.6
    assert clock.pauses[0] == 0.02
    assert clock.pauses[-1] == max(clock.pauses) == 0.5
    assert all(1 <= later / earlier <= 1.3 for earlier, later in itertools.pairwise(clock.pauses))
    assert clock.pauses.index(0.5) < 30


def test_a_rank_does_not_take_a_scratch_folder_that_vanished_for_a_checkpoint(tmp_path, monkeypatch):
    writer = CheckpointWriter(tmp_path, 1, 1, ranks=2, job=JOB)
    Clock(monkeypatch, after_sleeping=lambda: shutil.rmtree(writer.scratch))

    with pytest.raises(CheckpointError, match="iteration_00000001 was not published; see the message of rank 0"):
        with writer:
            writer.write("state.json", b"a")


def test_files_of_a_scratch_folder_that_vanished_are_not_written(tmp_path):
    """Half a checkpoint must not appear in its place."""
    with pytest.raises(CheckpointError, match="iteration_00000001 cannot be written: No such file or directory"):
        with CheckpointWriter(tmp_path, 1) as writer:
            writer.write("state.json", b"a")
            shutil.rmtree(writer.scratch)
            writer.write("experts/rre_00.zh.000.safetensors", b"b")

    assert os.listdir(tmp_path) == []


def test_a_rank_0_that_fails_leaves_only_its_reason(tmp_path):
    """Its files may be large. The other ranks have not come yet, and find the reason."""
    with pytest.raises(RuntimeError), CheckpointWriter(tmp_path, 1, 0, ranks=2, job=JOB) as writer:
        writer.write("state.json", b"a")
        writer.write("experts/rre_00.zh.000.safetensors", b"b")
        raise RuntimeError("broken")

    assert os.listdir(writer.scratch) == [".failed_00000"]
    with pytest.raises(CheckpointError, match="rank 0 could not write: broken"):
        with CheckpointWriter(tmp_path, 1, 1, ranks=2, job=JOB):
            raise AssertionError("a rank that comes late has nothing to do")
    assert os.listdir(tmp_path) == []


def test_a_rank_that_fails_leaves_the_files_of_the_others(tmp_path):
    """Rank 0 removes them, or the last rank to leave."""
    with pytest.raises(RuntimeError), CheckpointWriter(tmp_path, 1, 1, ranks=3, job=JOB) as writer:
        writer.write("state.json", b"a")
        raise RuntimeError

    assert sorted(os.listdir(writer.scratch)) == [".failed_00001", "state.json"]
    assert (writer.scratch / ".failed_00001").read_text() == "RuntimeError"


def test_a_report_that_cannot_be_written_becomes_a_report_of_the_failure(tmp_path, monkeypatch):
    """Half a report stays behind, as on a full disk."""
    write_durably = rank_reports.write_durably
    failures = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]

    def write(path, data):
        write_durably(path, data)
        if failures:
            raise failures.pop()

    monkeypatch.setattr(rank_reports, "write_durably", write)

    with pytest.raises(CheckpointError, match="iteration_00000001 cannot be written: No space left on device"):
        with CheckpointWriter(tmp_path, 1, 1, ranks=2, job=JOB) as writer:
            writer.write("state.json", b"a")

    assert sorted(os.listdir(writer.scratch)) == [".failed_00001", "state.json"]


def test_of_several_failures_that_of_the_lowest_rank_is_told(tmp_path):
    reports = [RankReports(tmp_path / "final", tmp_path / "new" / "scratch", rank, 4) for rank in range(4)]
    for rank in (2, 1):
        reports[rank].leave(RuntimeError(f"reason {rank}"))

    with pytest.raises(AnotherRankFailed, match="final: rank 1 could not write: reason 1"):
        reports[3].raise_failure()
