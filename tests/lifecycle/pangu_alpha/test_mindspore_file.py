"""The .ckpt format, compared with MindSpore's own reader and writer."""

import numpy as np
import public_format
import pytest

from mindpangu.errors import CheckpointError
from mindpangu.lifecycle.pangu_alpha import mindspore_file
from mindpangu.lifecycle.pangu_alpha.mindspore_file import MindSporeFile, encode_tensor

TENSORS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.c": np.linspace(-1, 1, 5).astype(np.float16),
    "scalar": np.array(7, np.int32),
    "large": np.arange(3000, dtype=np.int64).reshape(2, 3, 500),
}


def write(path, tensors):
    pieces = [bytes(piece) for name, values in tensors.items() for piece in encode_tensor(name, values)]
    path.write_bytes(b"".join(pieces))


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape), name
        np.testing.assert_array_equal(found[name], values)


def read(path):
    file = MindSporeFile(path)
    assert {name: file.shape(name) for name in file.names} == {name: file.read(name).shape for name in file.names}
    return {name: file.read(name) for name in file.names}


@pytest.mark.parametrize("checksum", [False, True])
def test_files_that_mindspore_writes_are_read(tmp_path, checksum):
    public_format.save(tmp_path / "m.ckpt", TENSORS, crc_check=checksum)
    assert_same(read(tmp_path / "m.ckpt"), TENSORS)


@pytest.mark.parametrize("piece", [1 << 28, 1000])
def test_mindspore_reads_files_that_are_written(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(mindspore_file, "_PIECE", piece)

    write(tmp_path / "m.ckpt", TENSORS)

    assert_same(public_format.load(tmp_path / "m.ckpt"), TENSORS)
    assert_same(read(tmp_path / "m.ckpt"), TENSORS)


def test_tensors_that_mindspore_splits_are_read(tmp_path, monkeypatch):
    from mindspore.train import serialization

    monkeypatch.setattr(serialization, "SLICE_SIZE", 1)  # KB
    public_format.save(tmp_path / "m.ckpt", TENSORS)
    assert_same(read(tmp_path / "m.ckpt"), TENSORS)


def test_every_truncation_is_noticed(tmp_path):
    tensors = {name: TENSORS[name] for name in ("a", "b.c", "scalar")}
    public_format.save(tmp_path / "m.ckpt", tensors)
    data = (tmp_path / "m.ckpt").read_bytes()
    ends = np.cumsum([sum(len(piece) for piece in encode_tensor(*item)) for item in tensors.items()])

    assert ends[-1] == len(data)
    for length in range(len(data)):
        (tmp_path / "t.ckpt").write_bytes(data[:length])
        if length in ends:  # a whole file with fewer tensors; the caller notices missing ones
            assert list(read(tmp_path / "t.ckpt")) == list(tensors)[: list(ends).index(length) + 1]
            continue
        with pytest.raises(CheckpointError, match=r"t.ckpt is not a complete MindSpore checkpoint: .*; download"):
            MindSporeFile(tmp_path / "t.ckpt")


def test_a_cut_checksum_is_noticed(tmp_path):
    public_format.save(tmp_path / "m.ckpt", {"scalar": TENSORS["scalar"]}, crc_check=True)
    data = (tmp_path / "m.ckpt").read_bytes()

    for missing in range(1, 17):
        (tmp_path / "t.ckpt").write_bytes(data[:-missing])
        message = "inside its checksum" if missing <= 10 else ""
        with pytest.raises(CheckpointError, match=rf"t.ckpt is not a complete .*{message}; download or copy"):
            MindSporeFile(tmp_path / "t.ckpt")


def test_unknown_fields_of_a_tensor_are_skipped(tmp_path):
    content = np.arange(2, dtype=np.float32).tobytes()
    unknown = b"\x31" + bytes(8) + b"\x3d" + bytes(4) + b"\x40\x05" + b"\x4a\x02ab"  # 8 bytes, 4, a number, text
    tensor = b"\x08\x02" + unknown + b"\x12\x07Float32" + b"\x1a\x08" + content
    value = b"\x0a\x01a" + b"\x12" + bytes([len(tensor)]) + tensor + unknown
    (tmp_path / "m.ckpt").write_bytes(b"\x0a" + bytes([len(value)]) + value)
    np.testing.assert_array_equal(MindSporeFile(tmp_path / "m.ckpt").read("a"), [0, 1])

    (tmp_path / "cut.ckpt").write_bytes(b"\x0a\x03\x31ab")
    with pytest.raises(CheckpointError, match="it ends at byte 5, inside a field that goes up to 11"):
        MindSporeFile(tmp_path / "cut.ckpt")


@pytest.mark.parametrize("content", [b"PK\x03\x04 a zip file", b"\x80\x02}q\x00.", b"{}", bytes(50), b"\xff" * 50])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "m.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m.ckpt is not a complete MindSpore checkpoint"):
        MindSporeFile(tmp_path / "m.ckpt")


def test_a_wrong_checksum_a_missing_file_and_other_types_are_named(tmp_path):
    public_format.save(tmp_path / "m.ckpt", TENSORS, crc_check=True)
    (tmp_path / "m.ckpt").chmod(0o644)
    data = bytearray((tmp_path / "m.ckpt").read_bytes())
    data[30] ^= 1
    (tmp_path / "m.ckpt").write_bytes(data)
    with pytest.raises(CheckpointError, match="its checksum is wrong"):
        MindSporeFile(tmp_path / "m.ckpt")

    with pytest.raises(CheckpointError, match=r"none.ckpt cannot be read: No such file"):
        MindSporeFile(tmp_path / "none.ckpt")

    public_format.save(tmp_path / "bool.ckpt", {"flag": np.array([True, False])})
    with pytest.raises(CheckpointError, match=r"flag is of type Bool; known: Float16"):
        MindSporeFile(tmp_path / "bool.ckpt").read("flag")


def test_content_that_does_not_fit_its_shape_is_refused(tmp_path):
    data = b"".join(bytes(piece) for piece in encode_tensor("a", TENSORS["a"]))
    (tmp_path / "m.ckpt").write_bytes(data.replace(b"\x08\x03\x08\x04", b"\x08\x03\x08\x05"))
    with pytest.raises(CheckpointError, match=r"a has 48 bytes, its shape \[3, 5\] of Float32 needs 60"):
        MindSporeFile(tmp_path / "m.ckpt").read("a")
