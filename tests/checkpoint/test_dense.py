"""Dense files: whole tensors from the slices of any ranks, and nothing from slices that leave a hole."""

from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from mindpangu.checkpoint.dense import DenseFiles, dense_header
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


@pytest.mark.parametrize("ranks", [[0], [0, 2], [0, 1, 1, 2]])
def test_slices_with_gaps_or_duplicates_are_refused(tmp_path, ranks):
    slices = [TensorSlice.equal(WEIGHT.shape, 0, rank, 3) for rank in ranks]

    with pytest.raises(CheckpointError, match="weight"):
        opened(tmp_path, slices).read("weight")


def test_a_missing_tensor_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="'other'"):
        opened(tmp_path, [TensorSlice(WEIGHT.shape)]).read("other")
