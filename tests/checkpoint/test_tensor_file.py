"""Files that are read and written one tensor at a time equal those of the safetensors library."""

import json
import struct
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from mindpangu.checkpoint import tensor_file
from mindpangu.checkpoint.tensor_file import (
    TensorFile,
    TensorInfo,
    chunks_of,
    decode_file,
    decode_tensors,
    encode_stream,
)
from mindpangu.errors import CheckpointError
from mindpangu.tensor_format import decode

SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
DTYPES = st.sampled_from([np.float32, np.float16, np.int64, np.int32, np.uint16])


@given(st.dictionaries(st.text("abc.", max_size=5).map("x{}".format), st.tuples(SHAPES, DTYPES), max_size=4))
def test_reading_and_writing_agree_with_the_library(tmp_path_factory, described):
    tensors = {
        name: np.arange(np.prod(shape), dtype=dtype).reshape(shape) for name, (shape, dtype) in described.items()
    }
    path = tmp_path_factory.mktemp("file") / "a.safetensors"
    path.write_bytes(save(tensors, {"what": "π"}))

    file = TensorFile(path)

    assert file.metadata == {"what": "π"}
    assert file.tensors.keys() == tensors.keys()
    for name, values in tensors.items():
        assert file.tensors[name] == TensorInfo(values.dtype, values.shape)
        np.testing.assert_array_equal(file.read(name), values)
        assert b"".join(file.chunks(name)) == values.tobytes()

    again = b"".join(encode_stream(file.tensors, {"a": "b"}, lambda name: chunks_of(tensors[name])))
    for name, values in load(again).items():
        np.testing.assert_array_equal(values, tensors[name])


@given(st.text("abc", min_size=1, max_size=20))
def test_tensors_begin_at_an_aligned_byte(name):
    """The format asks for it, and readers that map the file rely on it."""
    values = np.arange(3, dtype=np.float32)
    tensors = {name: TensorInfo(values.dtype, values.shape)}

    encoded = b"".join(encode_stream(tensors, {}, lambda _: chunks_of(values)))

    start = len(encoded) - values.nbytes
    assert start % 8 == 0
    assert int.from_bytes(encoded[:8], "little") + 8 == start


def test_an_incomplete_file_is_one_clear_error(tmp_path):
    whole = save({"a": np.zeros(9, np.float32)})
    path = tmp_path / "broken.safetensors"

    for data in (
        b"",
        whole[:4],
        whole[:20],
        whole[:-1],
        whole + b"x",
        b"\xff" * 8 + whole[8:],
        b"\x02" + b"\0" * 7 + b"[]",
    ):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"broken.safetensors is not a complete safetensors file"):
            TensorFile(path)
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        TensorFile(tmp_path / "absent")


def pack(header, content=b""):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + content


def entry(start, stop, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


HOSTILE = {
    "negative offset": (pack({"a": entry(-8, 0, [2])}, bytes(8)), r"a.data_offsets\[0\] is -8"),
    "fractional offset": (pack({"a": entry(0, 8.0, [2])}, bytes(8)), r"a.data_offsets\[1\] is 8.0"),
    "overlap": (pack({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)), r"b.data_offsets is \[4, 12\]"),
    "gap": (pack({"a": entry(0, 8, [2]), "b": entry(12, 20, [2])}, bytes(20)), r"b.data_offsets is \[12, 20\]"),
    "negative shape": (pack({"a": entry(0, 8, [-1, -2])}, bytes(8)), r"a.shape\[0\] is -1"),
    "fractional shape": (pack({"a": entry(0, 8, [2.0])}, bytes(8)), r"a.shape\[0\] is 2.0"),
    "huge shape": (pack({"a": entry(0, 8, [1 << 40] * 4)}, bytes(8)), "a.data_offsets is"),
    "many axes": (pack({"a": entry(0, 4, [1] * 1000)}, bytes(4)), "a.shape has 1000 axes"),
    "shape of another size": (pack({"a": entry(0, 8, [3])}, bytes(8)), "a.data_offsets is"),
    "beyond the file": (pack({"a": entry(0, 1 << 40, [1 << 38])}, bytes(8)), "size does not match"),
    "unknown dtype": (pack({"a": entry(0, 8, [2], "F33")}, bytes(8)), "a.dtype is 'F33'"),
    "dtype no text": (pack({"a": entry(0, 8, [2], ["F32"])}, bytes(8)), "a.dtype is a list"),
    "offsets no pair": (pack({"a": entry(0, 8, [2]) | {"data_offsets": [0]}}, bytes(8)), "a.data_offsets is a list"),
    "name that is a path": (pack({"../../x": entry(0, 8, [2])}, bytes(8)), "the tensor name is '../../x'"),
    "name of 5 MB": (pack({"n" * 5_000_000: entry(0, 8, [2])}, bytes(8)), "the tensor name 'nnn"),
    "a million tensors": (pack({f"t{i}": entry(0, 0, [0]) for i in range(1_000_000)}), "header length is"),
    "100,000 tensors": (pack({f"t{i}": entry(0, 0, [0]) for i in range(100_000)}), "header has 100,000 tensors"),
    "huge header": ((1 << 62).to_bytes(8, "little") + bytes(64), "header length is 4,611"),
    "deep header": (pack(b'{"a":' * 100_000), "is nested too deeply"),
    "header that is a list": (pack([1]), "header is not a JSON object"),
    "a tensor twice": (pack(b'{"a": 1, "a": 2}'), "has the key 'a' twice"),
    "metadata no strings": (pack({"__metadata__": {"a": 1}}), "__metadata__.a is 1"),
    "metadata no object": (pack({"__metadata__": []}), "__metadata__ is a list"),
    "entry no object": (pack({"a": 1}), "a is 1; allowed: an object"),
}


@pytest.mark.parametrize("case", list(HOSTILE))
def test_hostile_headers_end_in_one_message(tmp_path, case):
    data, message = HOSTILE[case]
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(data)
    began = time.process_time()

    with pytest.raises(CheckpointError, match=rf"hostile\.safetensors is not a complete.*{message}") as caught:
        TensorFile(path)
    with pytest.raises(ValueError, match=message):
        decode(data)

    assert time.process_time() - began < 4
    assert len(str(caught.value)) < 700


def test_tensors_in_memory_equal_those_of_the_library():
    tensors = {"a": np.arange(3, dtype=np.uint8), "b": np.arange(6.0).reshape(2, 3), "c": np.zeros((0, 4), np.float32)}
    data = save(tensors, {"x": "y"})

    metadata, decoded = decode(data)

    assert metadata == {"x": "y"}
    for name, values in load(data).items():
        np.testing.assert_array_equal(decoded[name], values)
        assert decoded[name].dtype == values.dtype
        assert decoded[name].flags.aligned


@pytest.mark.parametrize("name", ["a", "ab", "abcdefg"])
def test_tensors_begin_on_a_multiple_of_8_bytes(name):
    info = TensorInfo(np.dtype(np.float64), (1,))

    data = b"".join(encode_stream({name: info}, {"some": "thing"}, lambda _: chunks_of(np.ones(1))))

    (length,) = struct.unpack_from("<Q", data)
    assert length % 8 == 0
    assert np.frombuffer(data, np.float64, 1, 8 + length) == 1


def test_tensors_are_in_the_order_of_the_file_not_of_its_header(tmp_path):
    header = {
        "second": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        "first": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    }
    encoded = json.dumps(header).encode()
    path = tmp_path / "file"
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + np.array([1, 2], np.float32).tobytes())

    file = TensorFile(path)

    assert list(file.tensors) == ["first", "second"]
    assert [float(file.read(name)[0]) for name in file.tensors] == [1, 2]


@pytest.mark.parametrize(("num_bytes", "sizes"), [(16, [8, 8]), (20, [8, 8, 4]), (4, [4]), (0, [])])
def test_a_tensor_is_read_in_pieces(tmp_path, monkeypatch, num_bytes, sizes):
    monkeypatch.setattr(tensor_file, "CHUNK_BYTES", 8)
    values = np.arange(num_bytes, dtype=np.uint8)
    path = tmp_path / "file"
    path.write_bytes(save({"a": np.ones(3, np.float32), "b": values, "c": np.ones(3, np.uint8)}))

    pieces = list(TensorFile(path).chunks("b"))

    assert [len(piece) for piece in pieces] == sizes
    assert b"".join(pieces) == values.tobytes()


@pytest.mark.parametrize("cut", [1, 8])
def test_a_file_that_is_cut_off_while_it_is_read_is_one_clear_error(tmp_path, monkeypatch, cut):
    monkeypatch.setattr(tensor_file, "CHUNK_BYTES", 8)
    path = tmp_path / "file"
    data = save({"a": np.arange(4, dtype=np.float32), "b": np.arange(4, dtype=np.float32)})
    path.write_bytes(data)
    file = TensorFile(path)
    path.write_bytes(data[:-cut])

    assert file.read("a").tolist() == [0, 1, 2, 3]
    for read in (file.read, lambda name: list(file.chunks(name))):
        with pytest.raises(CheckpointError, match="file ends inside b: it was truncated while it was being read"):
            read("b")


def test_decoded_files_have_metadata_and_tensors(tmp_path):
    data = save({"a": np.arange(3, dtype=np.float32)}, {"x": "y"})

    metadata, tensors = decode_file(tmp_path, data)

    assert metadata == {"x": "y"}
    assert decode_tensors(tmp_path, data)["a"].tolist() == tensors["a"].tolist() == [0, 1, 2]


def test_tensors_of_another_dtype_than_float32_are_refused(tmp_path):
    data = save({"a": np.zeros(2, np.float32), "b": np.zeros(2, np.int32)})

    with pytest.raises(CheckpointError, match=r"x is not a safetensors .*: tensor b is int32; allowed: float32"):
        decode_file(tmp_path / "x", data)


def test_arrays_that_are_not_contiguous_are_written_in_their_order():
    values = np.arange(6, dtype=np.float32).reshape(2, 3).T

    assert b"".join(chunks_of(values)) == values.tobytes()
    assert b"".join(chunks_of(values[:0])) == b""
