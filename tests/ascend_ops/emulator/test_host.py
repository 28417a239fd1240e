"""op_host: calls that it refuses, and the definitions that it writes."""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ascend_ops import emulator, native
from ascend_ops.emulator.build import HERE, OPERATORS
from ascend_ops.emulator.cases import Shape, random_rows
from ascend_ops.emulator.kernels import check
from ascend_ops.rre_dispatch.emulation import random_ids

T = 24
H = 32
E = 4


def arguments(**changes):
    rng = np.random.default_rng(0)
    shape = Shape(T, H, experts=E, vocab_size=32)
    token_ids_T, slot_ids_T, table_DV = random_ids(rng, shape)
    named = {
        "x": random_rows(rng, shape, "float16"),
        "token_ids": token_ids_T,
        "slot_ids": slot_ids_T,
        "table": table_DV,
        "layout": np.zeros((1, E), np.int32),
    }
    return [*(named | changes).values()]


def run(chip="ascend910", **changes):
    return emulator.compile_operator("rre_dispatch", chip)(*arguments(**changes))


def test_accepts_a_call_that_matches_its_definition():
    outputs, report = run()

    assert [each.shape for each in outputs] == [(T, H), (8,), (T,), (8,), (512,)]
    assert len(report.loads) == T // 8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": np.zeros((T, 8), np.float16)}, "tiling of RreDispatch refuses"),
        (
            {"token_ids": np.zeros(T - 4, np.int32), "slot_ids": np.zeros(T - 4, np.int32)},
            "tiling of RreDispatch refuses",
        ),
        ({"table": np.zeros((1, 33), np.uint16)}, "tiling of RreDispatch refuses"),
        ({"layout": np.zeros((1, 40_000), np.int32)}, "tiling of RreDispatch refuses"),
        ({"table": np.zeros((1, 32), np.int32)}, "takes no such types on ascend910"),
        ({"x": np.zeros((T, H), np.int32)}, "takes no such types on ascend910"),
    ],
)
def test_refuses(changes, words):
    with pytest.raises(emulator.EmulatorError, match=words) as caught:
        run(**changes)
    assert caught.value.rule == "op-host"


def test_the_definition_for_mindspore_is_that_of_op_host():
    definition = emulator.compile_operator("rre_combine", "ascend910").definition()

    assert [definition[f"input{i}"]["name"] for i in range(3)] == ["rows", "positions", "residual"]
    output = {"name": "sum", "paramType": "required", "dtype": "float16,float32", "format": "ND,ND"}
    assert definition["output0"] == output
    on_910b = emulator.compile_operator("rre_combine", "ascend910b").definition()
    assert on_910b["output0"]["dtype"] == "float16,float32,bfloat16"


def test_combine_takes_bfloat16_on_chips_that_have_it():
    rows = np.zeros((8, 32), emulator.BFLOAT16)
    positions = np.arange(8, dtype=np.int32)
    emulator.compile_operator("rre_combine", "ascend910b")(rows, positions, rows)

    with pytest.raises(emulator.EmulatorError, match="no such types on ascend910"):
        emulator.compile_operator("rre_combine", "ascend910")(rows, positions, rows)


@pytest.mark.parametrize("source", sorted(OPERATORS.glob("*/ascend/op_host/*.cpp")), ids=lambda path: path.stem)
def test_the_host_side_is_cpp_11(source):
    """CANN's template of an operator project may compile it as C++11."""
    includes = [f"-I{folder}" for folder in (HERE / "include", OPERATORS / "ascend", source.parent)]
    command = [native.compiler(), "-std=c++11", "-fsyntax-only", "-w", "-D__NPU_ARCH__=2201", *includes, str(source)]

    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


def test_kernels_loaded_into_one_process_share_nothing(tmp_path):
    """The second library uses its own tiling, although its names are those of the first."""
    for folder in ("ascend", "rre_combine"):
        shutil.copytree(OPERATORS / folder, tmp_path / folder)
    source = tmp_path / "rre_combine" / "ascend" / "op_host" / "rre_combine.cpp"
    text = source.read_text()
    source.write_text(
        text.replace("context->SetBlockDim(rre_host::CoresFor(", "context->SetBlockDim(64 + rre_host::CoresFor(")
    )
    rows = np.zeros((8, 32), np.float16)
    positions = np.arange(8, dtype=np.int32)
    emulator.compile_operator("rre_combine", "ascend910")(rows, positions, rows)
    changed = emulator.compile_operator("rre_combine", "ascend910", sources=tmp_path, folder=tmp_path)

    with pytest.raises(emulator.EmulatorError, match="sync-all: launched on 65 cores"):
        changed(rows, positions, rows)


def test_threads_take_turns():
    operator = emulator.compile_operator("rre_dispatch", "ascend910")

    def each(seed):
        check(operator, Shape(300, 32, experts=4, slots=2), "float16", seed)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(each, range(12)))


def test_a_configuration_without_its_flags_is_refused(tmp_path):
    for folder in ("ascend", "rre_combine"):
        shutil.copytree(OPERATORS / folder, tmp_path / folder)
    header = tmp_path / "ascend" / "rre_host.h"
    header.write_text(header.read_text().replace(".DynamicShapeSupportFlag(true)", "; config"))
    rows = np.zeros((8, 32), np.float16)
    positions = np.arange(8, dtype=np.int32)
    operator = emulator.compile_operator("rre_combine", "ascend910b", sources=tmp_path, folder=tmp_path)

    with pytest.raises(emulator.EmulatorError, match=r"op-host: .*dynamicShapeSupport is not set"):
        operator(rows, positions, rows)


def test_an_unwritable_folder_is_an_error(tmp_path):
    with pytest.raises(emulator.EmulatorError, match=r"compile: emulated-rre_combine-1001-.*\.so cannot be written to"):
        emulator.compile_operator("rre_combine", "ascend910", folder=tmp_path / "missing")


def test_a_source_that_does_not_compile_is_an_error(tmp_path):
    for folder in ("ascend", "rre_combine"):
        shutil.copytree(OPERATORS / folder, tmp_path / folder)
    source = tmp_path / "rre_combine" / "ascend" / "op_kernel" / "rre_combine.h"
    source.write_text(source.read_text().replace("in_.EnQue(in);", "in_.EnqueueIt(in);"))

    with pytest.raises(emulator.EmulatorError, match="EnqueueIt") as caught:
        emulator.compile_operator("rre_combine", "ascend910", sources=tmp_path, folder=tmp_path)
    assert caught.value.rule == "compile"
