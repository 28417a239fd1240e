"""A disk without room, or without room for names, while a verb writes: one message, and nothing half-written."""

import shutil
import subprocess

import pytest
from contents import content_of, leftovers, losses_of
from verbs import options, run_verb

pytestmark = pytest.mark.slow

MEGABYTE = 1 << 20
STAGES = {
    "tokenizer train": "tokenizer",
    "data prepare": "data",
    "routing build": "routing",
    "evaluate": "evaluation.json",
    "generate --every-domain": "samples.json",
}
LIFECYCLE = {
    "extract": ["extract", "--domains", "zh,en"],
    "extract --export": ["extract", "--domains", "zh", "--export"],
    "experts add": ["experts", "add", "poetry", "--from", "zh"],
    "tiny tokenizer": ["tiny", "tokenizer", "--size", "400"],
}


class Disk:
    """A file system in memory whose size can be changed."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self._mount("size=64m,nr_inodes=10000")

    def limit(self, num_bytes=64 * MEGABYTE, names=10_000):
        """Leaves room for so many more bytes and files."""
        use = shutil.disk_usage(self.folder).used
        used_names = sum(1 for _ in self.folder.rglob("*")) + 1
        self._mount(f"remount,size={use + num_bytes},nr_inodes={used_names + names}")

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
    made = Disk(tmp_path / "runs")
    yield made
    made.unmount()


@pytest.fixture
def run_on_disk(finished, disk):
    """(overrides, run folder) of a copy of the finished run on the small disk."""
    overrides, source = finished
    shutil.copytree(source, disk.folder / "run")
    return overrides | {"training.output_dir": str(disk.folder)}, disk.folder / "run"


def limits(drill, quick, full):
    """Yields descriptions and limits of disks with little room."""
    for number in drill.attempts(quick, full):
        if number % 2:
            names = drill.rng.randrange(6)
            yield f"room for {names} files", {"names": names}
        else:
            num_bytes = 4096 * int(drill.rng.expovariate(0.1))
            yield f"room for {num_bytes} bytes", {"num_bytes": num_bytes}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_on_a_full_disk(drill, name, run_on_disk, disk, tmp_path):
    overrides, folder = run_on_disk
    words = [*name.split(), *options(overrides)]
    output = folder / STAGES[name]
    run_verb(words, tmp_path / "log.txt").require_success()
    expected = content_of(output)

    for description, room in limits(drill, quick=2, full=6):
        shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)
        with drill.attempt("full disk: stages", f"{name}, {description}"):
            disk.limit(**room)
            outcome = run_verb(words, tmp_path / "log.txt")
            disk.limit()
            if outcome.code != 0:
                outcome.require_one_message("No space left", "disk")
                assert not output.exists()
            assert not leftovers(folder)
            run_verb(words, tmp_path / "log.txt").require_success()
            assert content_of(output) == expected


@pytest.mark.parametrize("name", LIFECYCLE)
def test_a_lifecycle_verb_on_a_full_disk(drill, name, run_on_disk, disk, tmp_path):
    _, folder = run_on_disk
    out = disk.folder / "out"
    words = [*LIFECYCLE[name], "--checkpoint", folder, "--out", out]
    source = content_of(folder)
    run_verb(words, tmp_path / "log.txt").require_success()
    expected = content_of(out)

    for description, room in limits(drill, quick=2, full=8):
        shutil.rmtree(out, ignore_errors=True)
        with drill.attempt("full disk: lifecycle verbs", f"{name}, {description}"):
            disk.limit(**room)
            outcome = run_verb(words, tmp_path / "log.txt")
            disk.limit()
            if outcome.code != 0:
                outcome.require_one_message("No space left", "disk")
                assert not out.exists()
            assert not leftovers(disk.folder)
            run_verb(words, tmp_path / "log.txt") if outcome.code else None
            assert content_of(out) == expected
            assert content_of(folder) == source


def test_a_training_on_a_full_disk_keeps_its_checkpoints(drill, run_on_disk, disk, tmp_path):
    overrides, folder = run_on_disk
    expected = losses_of(folder)
    words = ["train", *options(overrides)]

    for description, room in limits(drill, quick=1, full=8):
        shutil.rmtree(folder / "checkpoint")
        (folder / "metrics.jsonl").unlink()
        with drill.attempt("full disk: training", description):
            disk.limit(**room)
            outcome = run_verb(words, tmp_path / "log.txt")
            disk.limit()
            if outcome.code != 0:
                outcome.require_one_message("No space left", "disk", "MB left")
            again = [*words, "--resume"] if any((folder / "checkpoint").glob("iteration_*")) else words
            run_verb(again, tmp_path / "log.txt").require_success()
            assert losses_of(folder) == expected
