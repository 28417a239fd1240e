"""Memory of a store: one copy in memory, or a mapped file whose disk must have room."""

import errno
import mmap
import os
import subprocess
import sys

import pytest

from mindpangu.cli.main import main
from mindpangu.errors import ExpertStoreError
from mindpangu.experts.host_memory import HostMemory, page_rounded


@pytest.mark.parametrize("mapped", [False, True])
def test_arrays_are_separate_and_zero(tmp_path, mapped):
    memory = HostMemory(3 * mmap.PAGESIZE, tmp_path / "new" / "folder" if mapped else None)

    first = memory.zeros((2, 5))
    second = memory.zeros((mmap.PAGESIZE // 4 + 1,))
    assert memory.mapped == mapped
    assert not first.any()
    assert not second.any()

    first[:] = 1
    second[:] = 2
    memory.will_need(second[7:])
    assert (first == 1).all()
    assert (second == 2).all()
    if mapped:
        assert (second.ctypes.data - first.ctypes.data) == page_rounded(first.nbytes) == mmap.PAGESIZE
        assert os.listdir(memory.folder) == []


def test_arrays_of_whole_pages_fill_the_memory_to_its_end(tmp_path):
    memory = HostMemory(6 * mmap.PAGESIZE, tmp_path)

    first, second, third = (memory.zeros((pages, mmap.PAGESIZE // 4)) for pages in (4, 1, 1))

    assert second.ctypes.data - first.ctypes.data == 4 * mmap.PAGESIZE
    assert third.ctypes.data - second.ctypes.data == mmap.PAGESIZE


def test_a_store_without_experts_takes_no_disk(tmp_path):
    memory = HostMemory(0, tmp_path / "new")

    assert not memory.mapped
    assert memory.location == "in memory"
    assert not (tmp_path / "new").exists()


def test_the_disk_space_of_a_scratch_file_is_taken_at_once(tmp_path, monkeypatch):
    """The file has no name, so its size is looked at through its descriptor."""
    sizes = []
    allocate = os.posix_fallocate

    def look(descriptor, *arguments):
        allocate(descriptor, *arguments)
        sizes.append((os.fstat(descriptor).st_size, 512 * os.fstat(descriptor).st_blocks))

    monkeypatch.setattr(os, "posix_fallocate", look)

    memory = HostMemory(3 * mmap.PAGESIZE, tmp_path)

    ((size, taken),) = sizes
    assert size == 3 * mmap.PAGESIZE <= taken
    assert memory.location == f"mapped from {tmp_path}"


def test_the_kernel_is_asked_for_the_pages_of_the_rows_and_no_others(tmp_path, monkeypatch):
    asked = []

    class Map(mmap.mmap):
        def madvise(self, *arguments):
            asked.append(arguments)
            super().madvise(*arguments)

    monkeypatch.setattr(mmap, "mmap", Map)
    memory = HostMemory(4 * mmap.PAGESIZE, tmp_path)
    memory.zeros((1,))
    pages = memory.zeros((3, mmap.PAGESIZE // 4))  # the second to the fourth page

    memory.will_need(pages[1:])
    memory.will_need(pages[0, 5:7])

    assert asked == [
        (mmap.MADV_WILLNEED, 2 * mmap.PAGESIZE, 2 * mmap.PAGESIZE),
        (mmap.MADV_WILLNEED, mmap.PAGESIZE, 4 * 7),
    ]


def test_a_lack_of_memory_is_named():
    memory = HostMemory(5 * 10**9, None)

    with pytest.raises(ExpertStoreError, match=r"needs 5,000\.0 MB of memory: .* set experts.storage to mapped"):
        memory.zeros((2**60,))


def full_disk(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", full_disk)

    with pytest.raises(
        ExpertStoreError, match=r"scratch file of 5,000\.0 MB in .*: No space left on device; free space"
    ):
        HostMemory(5 * 10**9, tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_message_of_the_command(tiny_overrides, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "posix_fallocate", full_disk)
    overrides = tiny_overrides | {"experts.storage": "mapped", "experts.storage_folder": str(tmp_path / "scratch")}
    arguments = [argument for key, value in overrides.items() for argument in (f"--{key}", value)]

    assert main(["train", *arguments]) == 1

    error = capsys.readouterr().err
    assert error.count("No space left on device") == 1
    assert "experts.storage_folder" in error
    assert "Traceback" not in error


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(ExpertStoreError, match=r"file: File exists"):
        HostMemory(1, tmp_path / "file")


RESIDENT = """
import numpy as np, psutil
from mindpangu.experts import open_experts
from tests.experts.conftest import open_store, pretend_step, random_plan, run_steps

def resident():
    return psutil.Process().memory_info().rss

tiny_config, tiny = open_store()
run_steps(tiny_config, tiny, [[random_plan(np.random.default_rng(0), tiny, [0])]])  # libraries are not counted
before = resident()
config, store = open_store(model__hidden_size="256")
experts = open_experts(store, config)
for domain in range(4):
    plan = random_plan(np.random.default_rng(0), store, [domain])
    plan.counts_LDA[:] = store.exists_LMA[:, [domain]]
    experts.begin([plan])
    experts.receive(plan, pretend_step(plan, experts.slabs(plan), domain))
    experts.squared_norm()
    experts.update(0.01, 1.0)
    experts.finish()
slabs = [array for group in (store.weights, store.moment1, store.moment2) for layer in group for slab in layer
         for array in slab.values()]
print((resident() - before) / sum(array.nbytes for array in slabs))
"""


def test_there_is_one_copy_of_the_store():
    """Resident memory after every expert was looked up and updated; the gradients of one domain come on top."""
    done = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    share = float(done.stdout.split()[-1])
    gradients = 1 / 3 / 4
    assert 0.85 < share < 1 + gradients + 0.1  # a second copy of the weights alone would be 1.33
