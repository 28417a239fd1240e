"""Bytes, launches and scalar operations of the kernels, held against what they must be at large shapes."""

import re

import pytest

from ascend_ops.emulator.__main__ import SHAPES, costs, table

LARGE = [shape for shape in SHAPES if shape.tokens >= 8192 and shape.hidden >= 2048]


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["ascend910", "ascend910b"])
def found(request):
    return list(costs(request.param))


def test_moves_hardly_more_than_it_must(found):
    assert len(found) == 6 * len(LARGE)
    for each in found:
        assert each.bytes_moved <= 1.05 * each.bytes_least, each


def test_cores_do_as_much_as_each_other(found):
    for each in found:
        assert each.bytes_uneven <= 0.1, each
        assert each.scalar_uneven <= 0.1, each


def test_launches_for_a_token(found):
    """One of its id and one of its row, or one of its row; combine has wide rows by themselves on all three sides.
    Dispatch moves the counts of eight groups four times."""
    for each in found:
        tokens, experts, slots = (int(re.search(rf"\b{letter}(\d+)", each.shape)[1]) for letter in "TED")
        of_counts = experts * slots / 2 if each.kernel == "rre_dispatch" else 0
        of_token = {"rre_dispatch": 2.25, "rre_combine": 3.1}.get(each.kernel, 1.2)
        assert each.dma <= of_token * tokens + of_counts, each


def test_the_table_has_a_line_for_each(found):
    assert len(table(found).splitlines()) == 1 + len(found)
