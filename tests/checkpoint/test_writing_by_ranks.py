"""Several ranks write one checkpoint: all of them succeed, or all fail for the reason of the one that failed first."""

import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from mindpangu.checkpoint import CheckpointReader, CheckpointWriter, clean_interrupted
from mindpangu.checkpoint import writer as writer_module
from mindpangu.errors import CheckpointError, InUseError
from mindpangu.locks import locked

JOB = "job-0123456789abcdef"
RANKS = 3
DISK_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def writer_of(parent, rank, **arguments):
    return CheckpointWriter(parent, 1, rank, RANKS, **({"timeout": 20, "job": JOB} | arguments))


def write(writer, before=lambda: None):
    """What a rank does; returns its error, or None."""
    try:
        with writer:
            before()
            writer.write(f"experts/rre_00.zh.00{writer.rank}.safetensors", bytes([writer.rank]))
    except Exception as error:
        return error
    return None


def run(*ranks):
    """Runs what each rank does in a thread of its own; returns their errors and the seconds that it took."""
    started = time.monotonic()
    with ThreadPoolExecutor(len(ranks)) as threads:
        errors = [future.result() for future in [threads.submit(rank) for rank in ranks]]
    return errors, time.monotonic() - started


def fail(error):
    raise error


def test_all_ranks_write_one_checkpoint(tmp_path):
    errors, _ = run(*(lambda rank=rank: write(writer_of(tmp_path / "new", rank)) for rank in range(RANKS)))

    assert errors == [None] * RANKS
    assert os.listdir(tmp_path / "new") == ["iteration_00000001"]
    reader = CheckpointReader(tmp_path / "new")
    assert [reader.read(f"experts/rre_00.zh.00{rank}.safetensors") for rank in range(RANKS)] == [b"\0", b"\1", b"\2"]
    assert sorted(os.listdir(reader.folder)) == ["experts", "manifest.json"]


@pytest.mark.parametrize("late", range(RANKS))
def test_the_ranks_wait_for_a_late_one(tmp_path, late):
    def rank_of(rank):
        time.sleep(0.3 * (rank == late))
        return write(writer_of(tmp_path / "new", rank))

    errors, _ = run(*(lambda rank=rank: rank_of(rank) for rank in range(RANKS)))

    assert errors == [None] * RANKS
    assert len(CheckpointReader(tmp_path / "new").files) == RANKS


@pytest.mark.parametrize("failing", range(RANKS))
@pytest.mark.parametrize("late", range(RANKS))
def test_the_reason_of_the_rank_that_failed_reaches_all(tmp_path, failing, late):
    """Also a rank that comes when the others have gone: it does not wait."""

    def rank_of(rank):
        time.sleep(0.3 * (rank == late))
        return write(writer_of(tmp_path, rank), (lambda: fail(DISK_FULL)) if rank == failing else lambda: None)

    errors, seconds = run(*(lambda rank=rank: rank_of(rank) for rank in range(RANKS)))

    assert seconds < 10
    assert errors.pop(failing) is DISK_FULL
    for error in errors:
        assert isinstance(error, CheckpointError)
        assert f"rank {failing} could not write: checkpoint {tmp_path / 'iteration_00000001'}" in str(error)
        assert "No space left on device" in str(error)
    assert os.listdir(tmp_path) == []


def test_a_file_that_cannot_be_written_fails_all_ranks(tmp_path, monkeypatch):
    write_durably = writer_module.write_durably
    monkeypatch.setattr(
        writer_module,
        "write_durably",
        lambda path, data: fail(DISK_FULL) if path.name == "rre_00.zh.002.safetensors" else write_durably(path, data),
    )

    errors, _ = run(*(lambda rank=rank: write(writer_of(tmp_path, rank)) for rank in range(RANKS)))

    assert "rank 2 could not write" in str(errors[0])
    assert "rank 2 could not write" in str(errors[1])
    assert "iteration_00000001 cannot be written: No space left on device" in str(errors[2])
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_that_cannot_be_published_fails_all_ranks(tmp_path, monkeypatch):
    write_durably = writer_module.write_durably
    monkeypatch.setattr(
        writer_module,
        "write_durably",
        lambda path, data: fail(DISK_FULL) if path.name == "manifest.json" else write_durably(path, data),
    )

    errors, _ = run(*(lambda rank=rank: write(writer_of(tmp_path, rank)) for rank in range(RANKS)))

    assert all("No space left on device" in str(error) for error in errors)
    assert "rank 0 could not write" in str(errors[1])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("missing", range(RANKS))
def test_a_rank_that_times_out_names_the_rank_it_waited_for(tmp_path, missing):
    present = [rank for rank in range(RANKS) if rank != missing]
    late = writer_of(tmp_path, missing)

    errors, _ = run(*(lambda rank=rank: write(writer_of(tmp_path, rank, timeout=0.3)) for rank in present))

    awaited = f"waited for rank {missing}, but 0 s" if missing else "waited for rank 0 to publish it, but 1 s"
    late_error = write(late)
    for error in (*errors, late_error):
        assert isinstance(error, CheckpointError)
        assert f"{awaited} were not enough" in str(error)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("cancelled", [0, 1])
def test_a_rank_may_be_cancelled_while_it_waits(tmp_path, monkeypatch, cancelled):
    writers = [writer_of(tmp_path, rank) for rank in range(RANKS)]
    this_thread = threading.local()

    def cancel_and_sleep(seconds):
        if this_thread.rank == cancelled:
            writers[cancelled].cancel()
        time.sleep(seconds)

    def write_as(rank):
        this_thread.rank = rank
        return write(writers[rank])

    clock = SimpleNamespace(monotonic=time.monotonic, sleep=cancel_and_sleep)
    monkeypatch.setattr(writer_module, "time", clock)

    errors, seconds = run(*(lambda rank=rank: write_as(rank) for rank in range(2)))  # rank 2 does not come

    assert seconds < 10
    assert "but it was abandoned" in str(errors[cancelled])
    assert f"rank {cancelled} could not write: " in str(errors[1 - cancelled])
    assert f"rank {cancelled} could not write: " in str(write(writers[2]))
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_created_is_named_by_each_rank(tmp_path):
    (tmp_path / "file").touch()

    errors, seconds = run(*(lambda rank=rank: write(writer_of(tmp_path / "file", rank)) for rank in range(RANKS)))

    assert seconds < 10
    for error in errors:
        assert "file/iteration_00000001 cannot be written: " in str(error)
        assert "choose another folder (training.output_dir, --out)" in str(error)


def test_a_rank_0_that_may_not_write_does_not_leave_the_others_waiting(tmp_path):
    """As when another job writes the same checkpoint."""
    locks = [threading.Event(), threading.Event()]

    def other_job():
        with locked(tmp_path / "iteration_00000001"):
            locks[0].set()
            locks[1].wait()

    thread = threading.Thread(target=other_job)
    thread.start()
    locks[0].wait()

    errors, seconds = run(*(lambda rank=rank: write(writer_of(tmp_path, rank)) for rank in range(RANKS)))
    locks[1].set()
    thread.join()

    assert seconds < 10
    assert isinstance(errors[0], InUseError)
    assert all(f"rank 0 could not write: {errors[0]}" in str(error) for error in errors[1:])
    assert os.listdir(tmp_path) == []


def test_a_job_whose_rank_died_leaves_nothing_behind_for_the_next(tmp_path):
    """The next job has another scratch folder, and removes that of the first."""
    dead = writer_of(tmp_path, 1).__enter__()
    dead.write("experts/rre_00.zh.001.safetensors", b"old")

    clean_interrupted(tmp_path)
    assert os.listdir(tmp_path) == []
    dead.scratch.mkdir()
    errors, _ = run(*(lambda rank=rank: write(writer_of(tmp_path, rank, job="job-00000000")) for rank in range(RANKS)))

    assert errors == [None] * RANKS
    assert os.listdir(tmp_path) == ["iteration_00000001"]
    assert CheckpointReader(tmp_path).read("experts/rre_00.zh.001.safetensors") == b"\1"
