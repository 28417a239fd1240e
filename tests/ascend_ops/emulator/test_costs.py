"""Bytes, launches and scalar operations of the kernels at large shapes."""

import itertools

import pytest

from ascend_ops.emulator.__main__ import SHAPES, costs, table
from ascend_ops.emulator.kernels import kernels

LARGE = [shape for shape in SHAPES if shape.tokens >= 8192 and shape.hidden >= 2048]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["ascend910", "ascend910b"])
def kernel_costs(request):
    return list(costs(request.param))


def test_a_kernel_moves_hardly_more_than_the_least_bytes(kernel_costs):
    assert len(kernel_costs) == len(LARGE) * len(kernels())
    for each in kernel_costs:
        assert each.bytes_moved <= 1.05 * each.bytes_least, each


def test_cores_share_the_work_equally(kernel_costs):
    for each in kernel_costs:
        assert each.bytes_uneven <= 0.1, each
        assert each.scalar_uneven <= 0.1, each


def test_a_kernel_launches_no_more_than_expected(kernel_costs):
    calls = itertools.product(LARGE, kernels().values())
    for each, (shape, kernel) in zip(kernel_costs, calls, strict=True):
        assert each.kernel == kernel.name
        assert each.dma <= kernel.most_launches(shape), each


def test_the_table_has_a_line_per_cost(kernel_costs):
    assert len(table(kernel_costs).splitlines()) == 1 + len(kernel_costs)
