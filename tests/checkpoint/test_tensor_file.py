"""Files that are read and written one tensor at a time equal those of the safetensors library."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from mindpangu.checkpoint.tensor_file import TensorFile, TensorInfo, chunks_of, encode_stream
from mindpangu.errors import CheckpointError

SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
DTYPES = st.sampled_from([np.float32, np.float16, np.int64, np.int32, np.uint16])


@given(st.dictionaries(st.text("abc.", min_size=1, max_size=5), st.tuples(SHAPES, DTYPES), max_size=4))
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
