"""The kernels and the emulator under the compiler's sanitizers: addresses, undefined behaviour, data races."""

import os
import subprocess
import sys

import pytest

from ascend_ops import emulator, native

SANITIZERS = {"address,undefined": "libasan.so", "thread": "libtsan.so"}

# the sanitizer's runtime must be loaded before Python
PROGRAM = """
import sys
from pathlib import Path
from ascend_ops.emulator import compile_operator
from ascend_ops.emulator.cases import Shape
from ascend_ops.emulator.kernels import check

kernel, chip, flags, folder = sys.argv[1:]
operator = compile_operator(kernel, chip, folder=Path(folder), flags=(flags, "-fno-sanitize-recover=all"))
for seed, shape in enumerate((Shape(1500, 64, 8, 3, ranks=4), Shape(203, 48, 6, 2, ranks=2, skew=0.5, cores=7))):
    check(operator, shape, "float16", seed)
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("chip", ["ascend910", "ascend910b"])
@pytest.mark.parametrize("kernel", emulator.KERNELS)
def test_the_sanitizer_finds_nothing(kernel, chip, sanitizer, tmp_path):
    runtime = subprocess.run(
        [native.compiler(), f"-print-file-name={SANITIZERS[sanitizer]}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not os.path.isabs(runtime):
        pytest.skip(f"the compiler has no {SANITIZERS[sanitizer]}")
    environment = {**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "exitcode=66"}
    arguments = [kernel, chip, f"-fsanitize={sanitizer}", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], env=environment, capture_output=True, text=True, timeout=600
    )

    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not run with this kernel's address layout")

    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "done\n"
