"""The AscendC kernels equal their NumPy references on every chip, on random shapes, bit for bit."""

import functools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ascend_ops import emulator
from ascend_ops.emulator.cases import Shape, padded
from ascend_ops.emulator.kernels import check, kernels
from ascend_ops.rre_regroup.emulation import check_regroup

compiled = functools.cache(emulator.compile_operator)

CHIPS_AND_KERNELS = [(chip, kernel) for chip in emulator.CHIPS for kernel in emulator.KERNELS]


@st.composite
def shapes(draw):
    ranks = draw(st.sampled_from([1, 1, 2, 4]))
    return Shape(
        tokens=draw(st.one_of(st.integers(1, 64), st.integers(65, 1500))),
        hidden=16 * draw(st.integers(1, 12)),
        experts=ranks * draw(st.integers(1, 9)),
        slots=draw(st.integers(1, 5)),
        vocab_size=draw(st.integers(1, 200)),
        ranks=ranks,
        skew=draw(st.sampled_from([0.0, 0.5, 1.0])),
        cores=draw(st.sampled_from([0, 0, 1, 2, 3, 7])),
    )


@pytest.mark.parametrize(("chip", "kernel"), CHIPS_AND_KERNELS)
def test_every_kernel_equals_the_reference(chip, kernel):
    dtypes = kernels()[kernel].dtypes_on(chip)

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(shapes(), st.sampled_from(dtypes), st.integers(0, 2**32 - 1))
    def each(shape, dtype, seed):
        check(compiled(kernel, chip), shape, dtype, seed)

    each()


@pytest.mark.parametrize("chip", ["ascend910", "ascend910b"])
@pytest.mark.parametrize("kernel", emulator.KERNELS)
def test_rows_that_do_not_fit_the_unified_buffer_are_split_into_columns(chip, kernel):
    shape = Shape(tokens=40, hidden=100_016, experts=4, slots=2, ranks=2, cores=3)
    check(compiled(kernel, chip), shape, "float16", 0)


@pytest.mark.parametrize("kernel", ["rre_regroup", "rre_regroup_back"])
@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_regroup_of_padding_only_and_without_padding(kernel, fill):
    check_regroup(compiled(kernel, "ascend910"), Shape(333, 32, experts=5, ranks=3), "float16", 0, fill)


@pytest.mark.parametrize("kernel", ["rre_regroup", "rre_regroup_back"])
@pytest.mark.parametrize("counts", [[[-5, 3, 4]], [[2**31 - 1, 1, 1], [7, -(2**31), 9]], [[100, 100, 100]]])
def test_invalid_counts_cause_no_access_outside(kernel, counts):
    rows_CH = np.ones((64, 32), np.float16)
    compiled(kernel, "ascend910")(rows_CH, padded(np.array(counts, np.int32), 8))


@pytest.mark.parametrize("cores", [1, 5, 32])
def test_the_result_does_not_depend_on_the_cores(cores):
    shape = Shape(tokens=1001, hidden=64, experts=8, slots=3, cores=cores)
    check(compiled("rre_dispatch", "ascend910"), shape, "float32", 7)
