"""A disk without space or without inodes: every verb ends with one message, and leaves the disk as it was."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from mindpangu.checkpoint import CheckpointReader, CheckpointWriter
from mindpangu.cli.main import main
from mindpangu.errors import CheckpointError

OLDER = Path(__file__).parent / "fixtures" / "written_by_0_1_0"

FROM = ("--checkpoint", "run", "--out", "disk/new/out")
STAGE = ("--config", "run/config.yaml", "--training.output_dir", "disk/new", "--training.run_name", "out")
VERBS = {
    "extract": ("extract", "--domains", "zh,code", *FROM),
    "extract --export": ("extract", "--domains", "zh", "--export", *FROM),
    "experts add": ("experts", "add", "poetry", "--from", "zh", *FROM),
    "experts remove": ("experts", "remove", "zh", *FROM),
    "experts resize": ("experts", "resize", "zh", "--experts", "4", *FROM),
    "tiny tokenizer": (
        *("tiny", "tokenizer", "--tokenizer", "run/tokenizer/signs.model", "--size", "390"),
        *("--corpus", "corpus.jsonl", "--out", "disk/new/out"),
    ),
    "tokenizer extend": ("tokenizer", "extend", "--model", "run/tokenizer/signs.model", "--out", "disk/new/out/model"),
    "tokenizer train": ("tokenizer", "train", *STAGE),
}
LEFT_ON_PURPOSE = {"counts.safetensors"}  # of tiny tokenizer: saved at once, because counting takes long


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """disk(options) mounts a new small disk at ./disk, in a folder that has a copy of the older files."""
    shutil.copytree(OLDER, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "disk"
    path.mkdir()

    def unmount():
        subprocess.run(["umount", path], capture_output=True, check=False)

    def mount(options):
        unmount()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", path], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"this process cannot mount a small disk: {done.stderr.strip()}")
        return path

    yield mount
    unmount()


def tree(folder):
    """Returns the path of every file and folder → the hash of its content."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def tries(first, grow):
    """Yields sizes that grow until one is enough."""
    size = first
    while size < 10_000_000:
        yield size
        size = grow(size)


@pytest.mark.parametrize(
    ("option", "first", "grow", "reason"),
    [
        ("nr_inodes={},size=64m", 2, lambda inodes: inodes + max(1, inodes // 4), "No space left on device"),
        ("size={}k", 4, lambda size: size + max(4, size // 8 * 4), "No space left on device"),
    ],
    ids=["no inodes", "no space"],
)
@pytest.mark.parametrize("verb", ["extract", *(pytest.param(verb, marks=pytest.mark.slow) for verb in VERBS)])
def test_a_verb_leaves_the_disk_as_it_was(disk, capsys, verb, option, first, grow, reason):
    source = tree(Path("run"))
    held = 0

    for size in tries(first, grow):
        path = disk(option.format(size))
        code = main(VERBS[verb])
        error = capsys.readouterr().err
        if code == 0:
            break
        messages = [line for line in error.splitlines() if line.startswith("mindpangu: error: ")]
        assert len(messages) == 1, error
        assert "Traceback" not in error
        assert reason in messages[0], (size, messages)
        left = {path for path in tree(path) if Path(path).is_file()}
        assert {Path(file).name for file in left} <= LEFT_ON_PURPOSE
        if not left:
            assert tree(path) == {}
        held += 1

    assert code == 0
    assert held >= 2
    print(f"{verb}: tried {held + 1}, held {held}, the last succeeded")
    assert tree(Path("run")) == source


def test_earlier_checkpoints_outlive_a_full_disk(disk):
    path = disk("size=256k,nr_inodes=40")
    with CheckpointWriter(path, 1) as writer:
        writer.write("experts/rre_00.zh.000.safetensors", b"a" * 100_000)
    before = tree(path)

    for step, (name, data) in enumerate(
        [("state.json", b"b" * 300_000), *[("experts/rre_00.zh.000.safetensors", b"")] * 3], start=2
    ):
        with pytest.raises(CheckpointError, match="cannot be written: No space left on device; free disk space"):
            with CheckpointWriter(path, step) as writer:
                writer.write(name, data)
                for number in range(50):  # more files than the disk can take
                    writer.write(f"experts/rre_01.zh.{number:03d}.safetensors", b"")

    assert tree(path) == before
    assert CheckpointReader(path).read("experts/rre_00.zh.000.safetensors") == b"a" * 100_000
