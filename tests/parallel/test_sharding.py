"""Shards of tensors: cutting, joining, and copying from the shards of one layout to those of another."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindpangu.parallel.sharding import TensorSlice, share, vocabulary_slice


def parts_of(shape, axis, size, rows):
    """Returns all shards of a layout: `size` along an axis, each divided into `rows` along the first axis."""
    outer = [TensorSlice.equal(shape, axis, rank, size) for rank in range(size)]
    return [part.rows(rank, rows) for part in outer for rank in range(rows)]


SHAPES = st.tuples(st.integers(6, 13), st.integers(4, 9))


@given(SHAPES, st.sampled_from([None, 0, 1]), st.integers(1, 3), st.integers(1, 3))
def test_slices_rebuild_the_tensor(shape, axis, size, rows):
    whole = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    rebuilt = np.full(shape, -1, np.float32)

    for part in parts_of(shape, axis, size if axis is not None else 1, rows):
        values = part.of(whole)
        assert values.shape == part.local_shape
        part.put(values, rebuilt)

    np.testing.assert_array_equal(rebuilt, whole)


@given(SHAPES, st.data())
def test_any_layout_is_read_from_any_other(shape, data):
    whole = np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    def layout():
        axis = data.draw(st.sampled_from([None, 0, 1]))
        return parts_of(
            shape, axis, data.draw(st.integers(1, 3)) if axis is not None else 1, data.draw(st.integers(1, 3))
        )

    saved = [(part, part.of(whole)) for part in layout()]
    for own in layout():
        target = np.full(own.local_shape, np.nan, np.float32)
        copied = sum(own.copy(target, part, values) for part, values in saved)
        assert copied == target.size
        np.testing.assert_array_equal(target, own.of(whole))


@given(SHAPES, st.sampled_from([0, 1]), st.integers(1, 3), st.integers(1, 3))
def test_a_slice_survives_json(shape, axis, size, rows):
    for part in parts_of(shape, axis, size, rows):
        assert TensorSlice.read(json.loads(json.dumps(part.describe())), "the slice") == part


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_vocabulary_is_divided_by_itself(size):
    starts = (0, 10, 17)
    sizes = (10, 7, 5)
    table = np.arange(22, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)

    rows_of_rank = [vocabulary_slice(starts, sizes, 2, rank, size).of(table)[:, 0] for rank in range(size)]

    assert sorted(np.concatenate(rows_of_rank).tolist()) == list(range(22))
    for rank, rows in enumerate(rows_of_rank):
        for start, count in zip(starts, sizes, strict=True):
            of_vocabulary = [row - start for row in rows.astype(int).tolist() if start <= row < start + count]
            assert of_vocabulary == list(range(*share(count, rank, size)))


@pytest.mark.parametrize(
    ("part", "rank", "ranges"),
    [
        (TensorSlice((8, 3)), 1, ((0, ((4, 8),)),)),
        (TensorSlice.equal((8, 3), 0, 1, 2), 0, ((0, ((4, 6),)),)),
        (TensorSlice.equal((8, 3), 1, 2, 3), 1, ((0, ((4, 8),)), (1, ((2, 3),)))),
        (TensorSlice((20, 3), ((0, ((0, 2), (10, 14))),)), 0, ((0, ((0, 2), (10, 11))),)),
        (TensorSlice((20, 3), ((0, ((0, 2), (10, 14))),)), 1, ((0, ((11, 14),)),)),
    ],
)
def test_rows_of_a_slice_are_as_few_ranges_as_possible(part, rank, ranges):
    assert part.rows(rank, 2) == TensorSlice(part.shape, ranges)


def test_a_tensor_that_nobody_shares_is_whole():
    whole = TensorSlice((4, 3))
    array = np.zeros((4, 3))

    assert TensorSlice.equal([4, 3], 0, 0, 1) == TensorSlice.equal((4, 3), None, 1, 2) == whole
    assert vocabulary_slice((0, 1), (1, 3), 3, 0, 1) == whole
    assert whole.is_whole
    assert not TensorSlice.equal((4, 3), 0, 0, 2).is_whole
    assert whole.of(array) is array


@pytest.mark.parametrize(
    ("described", "words"),
    [
        ({"shape": [4, 3], "ranges": {"2": [[0, 1]]}}, r"the slice.ranges has the axis 2; allowed: < 2"),
        ({"shape": [4, 3], "ranges": {"1": [[0, 4]]}}, r"the slice.ranges.1 has ranges that overlap, .*, or exceed 3"),
        ({"shape": [4, 3], "ranges": {"0": [[0, 2], [1, 3]]}}, r"the slice.ranges.0 has ranges that overlap"),
        ({"shape": [4, 3], "ranges": {"0": [[2, 3], [0, 1]]}}, r"not sorted"),
        ({"shape": [4, 3], "ranges": {"0": [[3, 2]]}}, r"not sorted"),
        ({"shape": [-1], "ranges": {}}, r"the slice.shape"),
    ],
)
def test_an_invalid_description_is_refused(described, words):
    with pytest.raises(ValueError, match=words):
        TensorSlice.read(described, "the slice")


def test_a_description_may_have_ranges_that_touch_and_axes_in_any_order():
    described = {"shape": [4, 3], "ranges": {"1": [[0, 3]], "0": [[0, 2], [2, 2], [2, 4]]}}
    assert TensorSlice.read(described, "the slice") == TensorSlice(
        (4, 3), ((0, ((0, 2), (2, 2), (2, 4))), (1, ((0, 3),)))
    )


def test_a_slice_without_elements_takes_no_memory_for_its_long_axes():
    """A header may describe one: its bytes, none, fit the file."""
    described = TensorSlice.read({"shape": [1 << 40, 0], "ranges": {"0": [[0, 1 << 39]]}}, "slice")
    whole = TensorSlice((1 << 40, 0))

    assert (described.size, described.local_shape) == (0, (1 << 39, 0))
    assert whole.copy(np.empty((1 << 40, 0), np.float32), described, np.empty((1 << 39, 0), np.float32)) == 0


@pytest.mark.parametrize(
    ("ranks", "is_covered"),
    [([0, 1, 2], True), ([2, 0, 1], True), ([0, 0, 1, 2], True), ([0, 0, 2], False), ([0, 2], False), ([], False)],
)
def test_a_slice_is_covered_if_every_element_is_in_another_one(ranks, is_covered):
    others = [TensorSlice.equal((6, 4), 0, rank, 3) for rank in ranks]

    assert TensorSlice((6, 4)).is_covered_by(others) == is_covered
    assert TensorSlice.equal((6, 4), 1, 0, 2).is_covered_by(others) == is_covered
