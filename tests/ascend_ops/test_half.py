"""The software half precision of cpu_kernel.h, for old compilers, converts like NumPy, bit for bit."""

import ctypes
import os
import shutil
import subprocess

import numpy as np
import pytest

from ascend_ops import native

SOURCE = """
#include "cpu_kernel.h"
using ascend_ops::half;

ASCEND_OP void to_float(const half* from, float* to, long count) {
  for (long i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
}
ASCEND_OP void to_half(const float* from, half* to, long count) {
  for (long i = 0; i < count; ++i) to[i] = static_cast<half>(from[i]);
}
"""


@pytest.fixture(scope="module")
def convert(tmp_path_factory):
    """Returns convert(array, dtype), which uses the class of cpu_kernel.h."""
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        pytest.skip(f"no C++ compiler: {compiler} is not on PATH")
    folder = tmp_path_factory.mktemp("half")
    (folder / "half.cc").write_text(SOURCE)
    command = [compiler, *native.FLAGS, f"-I{native.PACKAGE}", "-DASCEND_OPS_SOFTWARE_HALF", "half.cc", "-o", "half.so"]
    subprocess.run(command, cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "half.so"))

    def run(array, dtype):
        out = np.empty(array.shape, dtype)
        function = library.to_float if dtype == np.float32 else library.to_half
        function(*(ctypes.c_void_p(each.ctypes.data) for each in (array, out)), ctypes.c_long(array.size))
        return out

    return run


def check_halves(convert, floats):
    floats = np.ascontiguousarray(floats, np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        expected = floats.astype(np.float16)
    actual = convert(floats, np.float16)
    wrong = np.flatnonzero(actual.view(np.uint16) != expected.view(np.uint16))
    assert wrong.size == 0, f"{floats[wrong[:5]]} became {actual[wrong[:5]]}, not {expected[wrong[:5]]}"


def every_half():
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def test_every_half_becomes_its_float(convert):
    with np.errstate(invalid="ignore"):
        expected = every_half().astype(np.float32)
    np.testing.assert_array_equal(convert(every_half(), np.float32).view(np.uint32), expected.view(np.uint32))


def test_ties_and_their_neighbours_are_rounded_like_numpy(convert):
    """Converts the middle of every two adjacent halves, and the floats next to it, including overflow to infinity."""
    halves = np.sort(every_half()[np.isfinite(every_half())]).astype(np.float32)
    middles = np.append((halves[1:] + halves[:-1]) / 2, np.float32([65519.996, 65520, -65520, 65536, 3e38]))

    for floats in (
        halves,
        middles,
        np.nextafter(middles, np.float32(np.inf)),
        np.nextafter(middles, -np.float32(np.inf)),
    ):
        check_halves(convert, floats)


def test_random_floats_are_rounded_like_numpy(convert):
    """Converts random bits, including NaN, infinities and tiny values, and random numbers in the range of halves."""
    rng = np.random.default_rng(0)
    check_halves(convert, rng.integers(0, 1 << 32, 1 << 20, dtype=np.uint32).view(np.float32))
    check_halves(convert, rng.standard_normal(1 << 20) * 10.0 ** rng.uniform(-9, 5, 1 << 20))


def test_special_floats_are_rounded_like_numpy(convert):
    infinity = np.float32([np.inf, -np.inf, 0.0, -0.0, 2.0**-24, 2.0**-25, -(2.0**-25), 1e-45])
    nans = np.uint32([0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF801FFF, 0x7FFFFFFF, 0x7F802000]).view(np.float32)
    check_halves(convert, infinity)
    check_halves(convert, nans)
