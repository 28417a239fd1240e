"""Dense parameters are read from the slices that any ranks wrote; a checkpoint without all of them is refused."""

from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from safetensors.numpy import save_file

from mindpangu.checkpoint.dense import dense_header
from mindpangu.errors import CheckpointError
from mindpangu.language_model import read_dense
from mindpangu.parallel.sharding import TensorSlice

WEIGHT = np.arange(24, dtype=np.float32).reshape(6, 4)


def checkpoint(folder, ranks):
    """Returns a reader of dense files that hold the slices of these ranks, of three."""
    names = []
    for number, rank in enumerate(ranks):
        held = TensorSlice.equal(WEIGHT.shape, 0, rank, 3)
        path = folder / f"dense_{number}.safetensors"
        save_file({"weight": held.of(WEIGHT).copy()}, path, dense_header({"weight": held}))
        names.append(path.name)
    return SimpleNamespace(folder=folder, files=names, verify=lambda name: folder / name)


def test_a_rank_reads_its_slice_from_those_of_others(tmp_path):
    needed = TensorSlice.equal(WEIGHT.shape, 1, 1, 2)
    parameter = ms.Parameter(np.zeros((6, 2), np.float32))

    read_dense(checkpoint(tmp_path, [0, 1, 2]), {"weight": parameter}, {"weight": needed})

    np.testing.assert_array_equal(parameter.asnumpy(), WEIGHT[:, 2:])


@pytest.mark.parametrize("ranks", [[0, 2], [0, 1, 1, 2], [0, 0, 2]])
def test_slices_with_gaps_or_duplicates_are_refused(tmp_path, ranks):
    parameter = ms.Parameter(np.zeros((6, 4), np.float32))

    with pytest.raises(CheckpointError, match="no tensor 'weight', or not all of it"):
        read_dense(checkpoint(tmp_path, ranks), {"weight": parameter}, {"weight": TensorSlice(WEIGHT.shape)})
