"""The checkpoint directory: complete or absent, verified before use, refused with a reason."""

import errno
import hashlib
import json
import resource
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save as encode_tensors

from mindpangu.checkpoint import (
    CheckpointReader,
    CheckpointWriter,
    ExpertFile,
    clean_interrupted,
    latest_iteration,
    list_iterations,
    prune,
    shards_of_experts,
)
from mindpangu.errors import CheckpointError


def save(parent, step, content=b"content"):
    with CheckpointWriter(parent, step) as writer:
        writer.write("config.yaml", content)
        writer.write("experts/rre_00.zh.000.safetensors", content * 2)


def test_written_files_read_back(tmp_path):
    save(tmp_path, 7)

    reader = CheckpointReader(tmp_path)

    assert reader.step == 7
    assert reader.folder.name == "iteration_00000007"
    assert reader.read("experts/rre_00.zh.000.safetensors") == b"contentcontent"


def test_nothing_appears_before_everything_is_written(tmp_path):
    save(tmp_path, 1)

    with pytest.raises(RuntimeError), CheckpointWriter(tmp_path, 2) as writer:
        writer.write("config.yaml", b"x")
        assert latest_iteration(tmp_path).name == "iteration_00000001"
        raise RuntimeError

    assert [path.name for path in tmp_path.iterdir()] == ["iteration_00000001"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"conte"), r"config\.yaml has 5 bytes, its manifest says 7"),
        (lambda path: path.write_bytes(b"Content"), r"config\.yaml was altered"),
        (lambda path: path.unlink(), r"config\.yaml cannot be read"),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    save(tmp_path, 1)

    damage(tmp_path / "iteration_00000001" / "config.yaml")

    with pytest.raises(CheckpointError, match=message):
        CheckpointReader(tmp_path).read("config.yaml")


def test_bad_manifests_and_missing_checkpoints_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        CheckpointReader(tmp_path)

    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match="has no absent"):
        CheckpointReader(tmp_path).read("absent")

    manifest = tmp_path / "iteration_00000001" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="has checkpoint format 99"):
        CheckpointReader(tmp_path)

    manifest.write_text('{"files": ')
    with pytest.raises(CheckpointError, match="cannot be read"):
        CheckpointReader(tmp_path)


def test_the_manifest_keeps_its_form(tmp_path):
    """The manifest's hash is the checkpoint's digest, which other files record."""
    with CheckpointWriter(tmp_path, 7) as writer:
        writer.write("state.json", b"b")
        writer.write("config.yaml", b"a")

    data = (tmp_path / "iteration_00000007" / "manifest.json").read_bytes()
    hashes = {name: hashlib.blake2b(name.encode(), digest_size=16).hexdigest() for name in "ab"}
    assert data.decode() == (
        '{\n "format_version": 1,\n "step": 7,\n "files": {\n'
        f'  "config.yaml": {{\n   "bytes": 1,\n   "blake2b": "{hashes["a"]}"\n  }},\n'
        f'  "state.json": {{\n   "bytes": 1,\n   "blake2b": "{hashes["b"]}"\n  }}\n }}\n}}'
    )
    assert CheckpointReader(tmp_path).digest == hashlib.blake2b(data, digest_size=16).hexdigest()


def test_prune_keeps_the_newest_and_ignores_the_unfinished(tmp_path):
    for step in (5, 20, 100):
        save(tmp_path, step)
    (tmp_path / ".iteration_00000200.writing").mkdir()
    (tmp_path / ".iteration_00000001.deleting").mkdir()
    (tmp_path / "iteration_00000300").mkdir()  # no manifest: not a checkpoint

    assert [path.name for path in prune(tmp_path, 2)] == ["iteration_00000005"]
    assert [path.name for path in list_iterations(tmp_path)] == ["iteration_00000020", "iteration_00000100"]

    clean_interrupted(tmp_path)
    assert not list(tmp_path.glob(".iteration_*"))


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 3, b"old")

    save(tmp_path, 3, b"new")

    assert CheckpointReader(tmp_path).read("config.yaml") == b"new"


def test_a_full_disk_is_one_clear_error(tmp_path):
    save(tmp_path, 1)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with (
            pytest.raises(CheckpointError, match="cannot be written: File too large; free disk space"),
            CheckpointWriter(tmp_path, 2) as writer,
        ):
            writer.write("state.json", b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)

    assert [path.name for path in tmp_path.iterdir()] == ["iteration_00000001"]


def test_a_checkpoint_that_needs_more_than_the_disk_has_is_refused_early(tmp_path):
    with pytest.raises(CheckpointError, match="the disk has"), CheckpointWriter(tmp_path, 2) as writer:
        writer.require_space(1 << 60)


def test_the_first_rank_may_publish_while_another_looks_for_failures(tmp_path, monkeypatch):
    first, second = (CheckpointWriter(tmp_path, 1, rank, ranks=2, timeout=5, job="job-00000000") for rank in range(2))
    glob = Path.glob

    def publish_meanwhile(path, pattern):
        if pattern == ".failed_*":
            first.__exit__(None, None, None)
            raise FileNotFoundError(2, "No such file or directory")  # as a scan of a folder that was renamed
        return glob(path, pattern)

    first.__enter__().write("config.yaml", b"a")
    with second:
        second.write("state.json", b"b")
        monkeypatch.setattr(Path, "glob", publish_meanwhile)
    monkeypatch.undo()

    assert CheckpointReader(tmp_path).files.keys() == {"config.yaml", "state.json"}


def link_a(tmp_path, step, source):
    """Saves a checkpoint that links the source's `config.yaml` if possible; returns whether it did."""
    with CheckpointWriter(tmp_path, step) as writer:
        linked = writer.link("config.yaml", source.folder, source.files["config.yaml"])
        if not linked:
            writer.write("config.yaml", b"written")
    return linked


def test_a_linked_file_is_one_file_with_two_names(tmp_path):
    save(tmp_path, 1)
    first = CheckpointReader(tmp_path)

    assert link_a(tmp_path, 2, first)

    second = CheckpointReader(tmp_path)
    assert (first.folder / "config.yaml").stat().st_ino == (second.folder / "config.yaml").stat().st_ino
    assert second.files == {"config.yaml": first.files["config.yaml"]}

    prune(tmp_path, 1)
    assert second.read("config.yaml") == b"content"

    (second.folder / "config.yaml").write_bytes(b"Content")
    with pytest.raises(CheckpointError, match=r"iteration_00000002/config\.yaml was altered"):
        second.read("config.yaml")


def test_damage_of_a_linked_file_is_found_under_both_names(tmp_path):
    save(tmp_path, 1)
    first = CheckpointReader(tmp_path)
    link_a(tmp_path, 2, first)

    (first.folder / "config.yaml").write_bytes(b"Content")

    readers = (first, CheckpointReader(tmp_path))
    for reader, other in (readers, readers[::-1]):
        altered = rf"{reader.folder.name}/config\.yaml was altered"
        message = rf"{altered}.*; {other.folder.name} has the same file on disk \(a hard"
        with pytest.raises(CheckpointError, match=message):
            reader.read("config.yaml")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path, patch: path.unlink(),
        lambda path, patch: path.write_bytes(b"conte"),
        lambda path, patch: path.write_bytes(b"Content"),  # altered: the new checkpoint is whole all the same
        lambda path, patch: patch.setattr("os.link", refuse_link),
    ],
)
def test_a_file_that_cannot_be_linked_is_written(tmp_path, monkeypatch, spoil):
    save(tmp_path, 1)
    first = CheckpointReader(tmp_path)
    spoil(first.folder / "config.yaml", monkeypatch)
    before = {path: path.read_bytes() for path in first.folder.rglob("*.*")}

    assert not link_a(tmp_path, 2, first)

    assert CheckpointReader(tmp_path).read("config.yaml") == b"written"
    assert {path: path.read_bytes() for path in first.folder.rglob("*.*")} == before


def refuse_link(*_, **__):
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def test_links_are_synced_with_their_folder(tmp_path, monkeypatch):
    """A new name is durable only once its folder is flushed."""
    synced = []
    monkeypatch.setattr("mindpangu.checkpoint.writer.fsync_folder", synced.append)
    save(tmp_path, 1)
    first = CheckpointReader(tmp_path)
    synced.clear()

    with CheckpointWriter(tmp_path, 2) as writer:
        assert writer.link(
            "experts/rre_00.zh.000.safetensors", first.folder, first.files["experts/rre_00.zh.000.safetensors"]
        )
        assert not synced

    assert writer.scratch / "experts" in synced


def test_a_cancelled_checkpoint_is_not_made(tmp_path):
    save(tmp_path, 1)

    with pytest.raises(CheckpointError, match="iteration_00000002 was abandoned"):
        with CheckpointWriter(tmp_path, 2) as writer:
            writer.write("config.yaml", b"x")
            writer.cancel()
            writer.write("state.json", b"x")

    assert [path.name for path in tmp_path.iterdir()] == ["iteration_00000001"]


def test_expert_file_describes_itself(tmp_path):
    header = ExpertFile(layer=1, domain="zh", index=3, step_count=9, table="0" * 32, tokenizer="1" * 32)
    tensors = {"up": np.arange(6, dtype=np.float32).reshape(2, 3)}
    path = tmp_path / "expert"

    data = header.encode(tensors)
    file, loaded = ExpertFile.decode(path, data)

    assert file == header
    assert header.encode(tensors) == data
    assert file.name == "experts/rre_01.zh.003.safetensors"
    np.testing.assert_array_equal(loaded["up"], tensors["up"])
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        ExpertFile.decode(path, data[:-1])
    with pytest.raises(CheckpointError, match="no valid expert header"):
        ExpertFile.decode(path, encode_tensors(tensors, metadata={"expert": "{}"}))


def test_a_shard_of_an_expert_keeps_its_key_on_disk(tmp_path):
    whole = ExpertFile(layer=1, domain="zh", index=3, step_count=9, table="0" * 32, tokenizer="1" * 32)
    shard = replace(whole, shard=(1, 2))

    headers = [json.loads(file.metadata["expert"]) for file in (whole, shard)]

    assert "part" not in headers[0]
    assert headers[1] == headers[0] | {"part": [1, 2]}
    assert "shard" not in headers[1]
    assert ExpertFile.from_metadata(tmp_path, shard.metadata) == shard
    assert shard.name == "experts/rre_01.zh.003.1_of_2.safetensors"
    assert shards_of_experts([whole.name]) == {(1, "zh", 3): 1}
    assert shards_of_experts([shard.name, "state.json"]) == {(1, "zh", 3): 2}
