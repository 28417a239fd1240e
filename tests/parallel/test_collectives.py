"""The collectives of a tensor group and of a data group, forward and backward, on the CPU and as Ascend computes them.

Every function is linear. Its gradient is compared with NumPy, rank by rank, as the table in `collectives.py` says.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindpangu.parallel.collectives import TensorGroup
from mindpangu.parallel.data_parallel import DataGroup
from tests.parallel.simulation import SimulatedRanks

ROWS = 3
WIDTH = 2
TARGETS = ("CPU", "Ascend")
SIZES = (2, 3)
NAMES = (
    "copy_to",
    "reduce_from",
    "scatter_to",
    "gather_from",
    "all_gather_last_dim",
    "reduce_scatter_last_dim",
)


def whole_numbers(seed, size, columns, dtype=np.float32):
    """Returns an array for each rank; sums of whole numbers are exact in any order."""
    return list(np.random.default_rng(seed).integers(-50, 50, (size, ROWS, columns)).astype(dtype))


def same(arrays):
    return [array.copy() for array in arrays]


def summed(arrays):
    return [sum(arrays)] * len(arrays)


def own_columns(arrays):
    return [np.split(array, len(arrays), 1)[rank] for rank, array in enumerate(arrays)]


def gathered(arrays):
    return [np.concatenate(arrays, 1)] * len(arrays)


def summed_own_columns(arrays):
    return own_columns(summed(arrays))


FORWARD = dict(zip(NAMES, (same, summed, own_columns, gathered, gathered, summed_own_columns), strict=True))
BACKWARD = dict(zip(NAMES, (summed, same, gathered, own_columns, summed_own_columns, gathered), strict=True))
TAKES_COLUMNS = ("gather_from", "all_gather_last_dim")
RETURNS_COLUMNS = ("scatter_to", "reduce_scatter_last_dim")


def simulate(monkeypatch, target, size, of_rank):
    ranks = SimulatedRanks({"group": tuple(range(size))}).install(monkeypatch, target)
    return ranks.run(of_rank)


def assert_equal(actual, expected):
    for array, other_array in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(array.asnumpy(), other_array)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_the_forward_pass_of_a_tensor_group(monkeypatch, name, size, target):
    x = whole_numbers(0, size, WIDTH if name in TAKES_COLUMNS else size * WIDTH)

    results = simulate(
        monkeypatch, target, size, lambda rank: getattr(TensorGroup("group", rank, size), name)(Tensor(x[rank]))
    )

    assert_equal(results, FORWARD[name](x))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_a_tensor_group(monkeypatch, name, size, target):
    x = whole_numbers(0, size, WIDTH if name in TAKES_COLUMNS else size * WIDTH)
    dout = whole_numbers(1, size, WIDTH if name in RETURNS_COLUMNS else size * WIDTH)

    def gradient(rank):
        (dx,) = getattr(TensorGroup("group", rank, size), name).bprop(Tensor(x[rank]), None, Tensor(dout[rank]))
        return dx

    results = simulate(monkeypatch, target, size, gradient)

    assert_equal(results, BACKWARD[name](dout))


@pytest.mark.parametrize("target", TARGETS)
def test_the_maximum_of_a_tensor_group_has_no_gradient(monkeypatch, target):
    x = [np.array([[3], [-2], [0]], np.float32), np.array([[1], [-1], [0]], np.float32)]

    def maximum(rank):
        cell = TensorGroup("group", rank, 2).maximum
        (dx,) = cell.bprop(Tensor(x[rank]), None, Tensor(x[rank]))
        return cell(Tensor(x[rank])), dx

    results = simulate(monkeypatch, target, 2, maximum)

    for result, dx in results:
        np.testing.assert_array_equal(result.asnumpy(), [[3], [-1], [0]])
        np.testing.assert_array_equal(dx.asnumpy(), np.zeros((ROWS, 1)))


@pytest.mark.parametrize(("target", "total"), [("CPU", 2050), ("Ascend", 2048)])
def test_only_the_cpu_sums_half_precision_in_float32(monkeypatch, target, total):
    """Added in half precision, the small numbers are lost beside 2048."""
    x = [np.full((1, 2), value, np.float16) for value in (2048, 1, 1)]

    results = simulate(monkeypatch, target, 3, lambda rank: TensorGroup("group", rank, 3).reduce_from(Tensor(x[rank])))

    for result in results:
        assert result.dtype == ms.float16
        np.testing.assert_array_equal(result.asnumpy(), np.full((1, 2), total, np.float16))


def test_a_tensor_group_of_one_returns_its_argument():
    group = TensorGroup()
    x = Tensor(np.ones((ROWS, WIDTH), np.float32))

    for name in (*NAMES, "maximum"):
        assert getattr(group, name)(x) is x


def test_the_same_group_with_new_cells_keeps_its_rank(monkeypatch):
    SimulatedRanks({"group": (0, 1)}).install(monkeypatch)
    group = TensorGroup("group", 1, 2)

    other = group.with_own_cells()

    assert (other.name, other.rank, other.size) == ("group", 1, 2)
    assert other.copy_to is not group.copy_to


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", SIZES)
def test_a_data_group_divides_rows(monkeypatch, size, target):
    rng = np.random.default_rng(2)
    x = rng.integers(-50, 50, (size, 2 * size, WIDTH)).astype(np.float32)

    def collectives(rank):
        group = DataGroup("group", rank, size)
        rows = group.reduce_scatter(Tensor(x[rank]))
        return group.all_reduce(Tensor(x[rank])), rows, group.all_gather(rows), group.local_rows(Tensor(x[rank]))

    results = simulate(monkeypatch, target, size, collectives)

    total = x.sum(0)
    for rank, result in enumerate(results):
        assert_equal(result, [total, np.split(total, size)[rank], total, np.split(x[rank], size)[rank]])


def test_the_cpu_uses_only_all_reduce(monkeypatch):
    """It compiles no other collective for a group of some of the ranks."""
    ranks = SimulatedRanks({"group": (0, 1)}).install(monkeypatch, "CPU")
    for name in ("AllGather", "ReduceScatter"):
        monkeypatch.setattr(ms.ops, name, lambda group, name=name: pytest.fail(f"{name} is used"))
    x_TH = Tensor(np.ones((2, 4), np.float32))

    def every_collective(rank):
        data = DataGroup("group", rank, 2)
        tensor = TensorGroup("group", rank, 2)
        rows = data.all_gather(data.reduce_scatter(x_TH)), data.all_reduce(x_TH)
        return rows, [getattr(tensor, name)(x_TH) for name in NAMES]

    assert len(ranks.run(every_collective)) == 2


@pytest.mark.parametrize(
    ("size", "shape", "divides"),
    [(2, (4, 3), True), (2, (3, 4), False), (2, (4,), False), (3, (6, 1), True), (1, (4, 3), False)],
)
def test_a_data_group_divides_matrices_whose_rows_it_can_share(monkeypatch, size, shape, divides):
    SimulatedRanks({"group": tuple(range(size))}).install(monkeypatch)

    group = DataGroup("group", 0, size)

    assert group.divides(shape) == divides


def test_a_data_group_of_one_sums_nothing():
    x = Tensor(np.ones((ROWS, WIDTH), np.float32))
    group = DataGroup()

    assert group.all_reduce(x) is x
    assert (group.rank, group.size) == (0, 1)
