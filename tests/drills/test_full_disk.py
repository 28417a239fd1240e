"""A disk without room for bytes or for names while a verb writes: one message, and nothing half-written."""

import os
import subprocess

import pytest
from commands import COMMANDS
from contents import content_of, leftovers
from verbs import run_verb

from mindpangu.checkpoint import CheckpointReader, CheckpointWriter
from mindpangu.errors import CheckpointError

MEGABYTE = 1 << 20
ROOMS = [
    *({"names": names} for names in (0, 1, 2, 4, 7, 12, 20, 40)),
    *({"num_bytes": 4096 * pages} for pages in (0, 1, 2, 4, 8, 16, 24, 32, 64, 128)),
]
KEPT = {"tiny tokenizer", "tiny inherit"}  # counts and reports, which are written before the checkpoint
FILE = "experts/rre_00.zh.000.safetensors"


class Disk:
    """A file system in memory whose size can be changed."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self._mount(f"size={64 * MEGABYTE},nr_inodes=20000")

    def limit(self, num_bytes=64 * MEGABYTE, names=20_000):
        """Leaves room for this many more bytes and files."""
        used = os.statvfs(self.folder)
        size = (used.f_blocks - used.f_bfree) * used.f_frsize + num_bytes
        self._mount(f"remount,size={max(size, 4096)},nr_inodes={used.f_files - used.f_ffree + names}")

    def unmount(self):
        subprocess.run(["umount", "-l", self.folder], check=True)

    def _mount(self, settings):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", settings, "tmpfs", self.folder], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"this user may not mount a file system: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path):
    made = Disk(tmp_path / "disk")
    yield made
    made.unmount()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_verb_on_a_full_disk(drill, sandboxes, disk, tmp_path, name):
    """Afterwards there is room again, and the verb finishes.

    Time of an attempt: 1 s; 15 s for a verb that compiles.
    """
    command = COMMANDS[name]
    rooms = drill.some_of(ROOMS, quick=int(command.is_quick), full=2 if command.compiles else 8)
    for room in rooms:
        with drill.attempt(f"full disk: {command.group}", f"{name}, {room}"):
            undisturbed = sandboxes.undisturbed(name)
            disk.limit()
            box = sandboxes.new(disk.folder, cleared_of=command)

            disk.limit(**room)
            outcome = run_verb(command.words, tmp_path / "log.txt", cwd=box)
            disk.limit()

            if outcome.code != 0:
                outcome.require_one_message("No space left", "disk", "MB left")
                command.require_nothing_half_written(box, undisturbed.whole)
                if command.again == "refuses" and name not in KEPT:
                    assert not (box / command.out).exists()
            assert not leftovers(box, locks=True)
            command.finish(box, tmp_path / "log.txt", undisturbed.whole).require_success()
            assert command.result(box / command.out) == undisturbed.result
            assert command.sources(box) == undisturbed.sources


def test_a_checkpoint_that_does_not_fit_leaves_earlier_ones_intact(drill, disk):
    """Time of an attempt: 0.01 s."""
    with CheckpointWriter(disk.folder, 1) as writer:
        writer.write(FILE, b"a" * 100_000)
    before = content_of(disk.folder)
    names = [f"experts/rre_01.zh.{number:03d}.safetensors" for number in range(50)]
    for room in drill.some_of(ROOMS, quick=4, full=len(ROOMS)):
        with drill.attempt("full disk: checkpoints", f"{room}"):
            disk.limit(**(room if "names" in room else room | {"num_bytes": min(room["num_bytes"], 100_000)}))

            with pytest.raises(CheckpointError, match="cannot be written: No space left on device; free disk space"):
                with CheckpointWriter(disk.folder, 2) as writer:
                    for name in names:
                        writer.write(name, b"b" * 8192)

            assert content_of(disk.folder) == before
            assert CheckpointReader(disk.folder).read(FILE) == b"a" * 100_000
            assert not leftovers(disk.folder, locks=True)
