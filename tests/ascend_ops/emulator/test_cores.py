"""The kernels know their core by either of CANN's macros, and refuse to guess; the limits they share with op_host."""

import shutil
import subprocess

import pytest

from ascend_ops import emulator, native
from ascend_ops.emulator.build import HERE, MACROS, OPERATORS
from ascend_ops.emulator.cases import Shape
from ascend_ops.emulator.kernels import check

HEADER = OPERATORS / "ascend" / "rre_kernel.h"


@pytest.mark.parametrize("macro", MACROS)
@pytest.mark.parametrize("chip", ["ascend910", "ascend910b"])
def test_a_kernel_runs_with_each_macro_alone(chip, macro):
    operator = emulator.compile_operator("rre_dispatch", chip, macro=macro)

    check(operator, Shape(300, 32, experts=4, slots=2), "float16", 0)


@pytest.mark.parametrize("definitions", [[], ["-D__NPU_ARCH__=3510"], ["-D__CCE_AICORE__=200"]])
def test_an_unknown_core_does_not_compile(definitions, tmp_path):
    # the emulator's own headers are for a known core, so only the kernels' header is read
    (tmp_path / "kernel_operator.h").write_text("")
    includes = [f"-I{tmp_path}", f"-I{HEADER.parent}"]
    command = [native.compiler(), "-std=c++17", "-E", *definitions, *includes, str(HEADER)]

    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode != 0
    assert "these kernels need __NPU_ARCH__ 1001 or 2201, or __CCE_AICORE__ 100 or 220" in done.stderr


def test_only_one_header_asks_for_the_core():
    sources = [path for suffix in ("h", "cpp") for path in OPERATORS.rglob(f"*.{suffix}") if HERE not in path.parents]

    asking = {path for path in sources if any(macro in path.read_text() for macro in MACROS)}

    assert asking == {HEADER}


@pytest.fixture
def with_large_batches(tmp_path):
    """Copies rre_dispatch with batches of which two fill a tile, as many as the rows' queue has buffers."""
    for folder in ("ascend", "rre_dispatch"):
        shutil.copytree(OPERATORS / folder, tmp_path / folder)
    limits = tmp_path / "ascend" / "rre_limits.h"
    limits.write_text(limits.read_text().replace("kMaxBatch = 16", "kMaxBatch = 128"))
    return tmp_path


def test_batches_that_are_too_large_for_a_tile_do_not_compile(with_large_batches):
    with pytest.raises(emulator.EmulatorError, match=r"compile: .*the positions of a tile need a flag"):
        emulator.compile_operator("rre_dispatch", "ascend910", sources=with_large_batches, folder=with_large_batches)


def test_batches_that_are_too_large_for_a_tile_would_be_a_hazard(with_large_batches):
    """The assertion is not stricter than it has to be."""
    kernel = with_large_batches / "rre_dispatch" / "ascend" / "op_kernel" / "rre_dispatch.h"
    kernel.write_text(kernel.read_text().replace("static_assert((kTileTokens", "static_assert(true || (kTileTokens"))
    operator = emulator.compile_operator(
        "rre_dispatch", "ascend910", sources=with_large_batches, folder=with_large_batches
    )

    with pytest.raises(emulator.EmulatorError) as caught:
        check(operator, Shape(1500, 64, experts=8, slots=3, cores=2), "float16", 0)

    assert caught.value.rule == "hazard"
