"""Dense files: whole tensors from the slices of any ranks, and nothing from slices that leave a hole."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from mindpangu.checkpoint.dense import DenseFiles, dense_files, dense_header
from mindpangu.errors import CheckpointError
from mindpangu.parallel.sharding import TensorSlice

WEIGHT = np.arange(24, dtype=np.float32).reshape(6, 4)
BIAS = np.arange(4, dtype=np.float32)


def opened(folder, slices):
    """Writes a dense file per slice of WEIGHT, the first with BIAS too, and opens them."""
    for rank, held in enumerate(slices):
        tensors = {"weight": held.of(WEIGHT)} | ({"bias": BIAS} if rank == 0 else {})
        parts = {"weight": held} | ({"bias": TensorSlice(BIAS.shape)} if rank == 0 else {})
        save_file(tensors, folder / f"dense_{rank}.safetensors", dense_header(parts))
    names = {path.name: None for path in folder.iterdir()}
    return DenseFiles(SimpleNamespace(folder=folder, files=names, verify=lambda name: folder / name))


@pytest.mark.parametrize("axis", [0, 1])
def test_slices_of_all_ranks_make_the_whole_tensor(tmp_path, axis):
    files = opened(tmp_path, [TensorSlice.equal(WEIGHT.shape, axis, rank, 2) for rank in range(2)])

    assert files.shapes == {"weight": (6, 4), "bias": (4,)}
    np.testing.assert_array_equal(files.read("weight"), WEIGHT)
    np.testing.assert_array_equal(files.read("bias"), BIAS)


def test_a_whole_tensor_needs_no_description(tmp_path):
    assert dense_header({"bias": TensorSlice(BIAS.shape)}) == {"format_version": "1"}
    np.testing.assert_array_equal(opened(tmp_path, [TensorSlice(WEIGHT.shape)]).read("weight"), WEIGHT)


def test_the_description_of_slices_keeps_its_form():
    held = TensorSlice.equal((6, 4), 0, 1, 2)
    assert dense_header({"weight": held}) == {
        "parts": '{"format_version": 1, "tensors": {"weight": {"ranges": {"0": [[3, 6]]}, "shape": [6, 4]}}}'
    }


@pytest.mark.parametrize("ranks", [[0], [0, 2], [0, 1, 1, 2], [0, 2, 2], [0, 1, 1]])
def test_slices_with_gaps_or_duplicates_are_refused(tmp_path, ranks):
    slices = [TensorSlice.equal(WEIGHT.shape, 0, rank, 3) for rank in ranks]

    with pytest.raises(CheckpointError, match=r"'weight', or not all of it|slices of weight .* shape \[6, 4\]"):
        opened(tmp_path, slices).read("weight")


def test_a_missing_tensor_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="'other'"):
        opened(tmp_path, [TensorSlice(WEIGHT.shape)]).read("other")


def test_values_are_as_they_were_written_whatever_the_layout(tmp_path):
    """Two ranks have rows 0, 1 and 4, 5, which is one slice of two ranges, and rows 2, 3."""
    slices = [TensorSlice((6, 4), ((0, ((0, 2), (4, 6))),)), TensorSlice((6, 4), ((0, ((2, 4),)),))]

    files = opened(tmp_path, slices)

    np.testing.assert_array_equal(files.read("weight"), WEIGHT)
    assert files.read("weight").dtype == np.float32
    assert files.read("weight").flags.writeable


def test_slices_of_tensors_of_different_shapes_are_refused(tmp_path):
    """Their numbers of elements add up: 12 of 6 · 4, and 12 of 4 · 6."""
    files = []
    for rank, shape in enumerate([(6, 4), (4, 6)]):
        held = TensorSlice.equal(shape, 0, rank, 2)
        path = tmp_path / f"dense_{rank}.safetensors"
        save_file({"weight": held.of(WEIGHT.reshape(shape))}, path, dense_header({"weight": held}))
        files.append(path.name)
    reader = SimpleNamespace(folder=tmp_path, files=files, verify=lambda name: tmp_path / name)

    with pytest.raises(CheckpointError, match=r"slices of weight .* do not add up to a tensor of shape \[6, 4\]"):
        DenseFiles(reader)


@pytest.mark.parametrize(
    ("values", "shape", "message"),
    [
        (WEIGHT.astype(np.float16), (6, 4), r"weight is float16 of shape \[6, 4\], .* 24 elements of float32"),
        (WEIGHT[:3], (3, 8), r"weight is float32 of shape \[3, 4\], .* 24 elements of float32"),
        (WEIGHT[:3], (4, 3), r"weight is float32 of shape \[3, 4\], .* 12 elements of float32"),
    ],
)
def test_a_tensor_must_have_the_dtype_and_the_shape_that_its_file_describes(tmp_path, values, shape, message):
    described = {"format_version": 1, "tensors": {"weight": {"shape": list(shape), "ranges": {}}}}
    path = tmp_path / "dense_0.safetensors"
    save_file({"weight": values}, path, {"parts": json.dumps(described)})
    reader = SimpleNamespace(folder=tmp_path, files=[path.name], verify=lambda name: path)

    with pytest.raises(CheckpointError, match=message):
        DenseFiles(reader)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("{", "it is not JSON"),
        ('{"format_version": 2, "tensors": {}}', "parts.format_version is 2"),
        ('{"format_version": 1, "tensors": {"weight": {}}}', r"parts\.tensors\.weight\.shape is missing"),
    ],
)
def test_a_description_of_slices_that_is_not_valid_is_named(tmp_path, description, message):
    path = tmp_path / "dense_0.safetensors"
    save_file({"weight": WEIGHT}, path, {"parts": description})
    reader = SimpleNamespace(folder=tmp_path, files=[path.name], verify=lambda name: path)

    with pytest.raises(CheckpointError, match=f"dense_0.safetensors does not describe its slices .*: {message}"):
        DenseFiles(reader)


def test_dense_files_are_listed_by_rank():
    names = ["state.json", "dense_00001_of_00002.safetensors", "dense_00000_of_00002.safetensors", "config.yaml"]

    assert dense_files(SimpleNamespace(files=names)) == names[2:0:-1]
