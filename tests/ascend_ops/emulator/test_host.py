"""What op_host refuses, and what it says of an operator."""

import shutil

import numpy as np
import pytest

from ascend_ops import emulator
from ascend_ops.emulator.build import OPERATORS
from ascend_ops.emulator.cases import Shape, random_ids, random_rows

T, H, E = 24, 32, 4


def arguments(**changes):
    chance = np.random.default_rng(0)
    token_ids_T, slot_ids_T, table_DV = random_ids(chance, Shape(T, H, experts=E, vocab_size=32))
    named = {
        "x": random_rows(chance, (T, H), "float16"),
        "token_ids": token_ids_T,
        "slot_ids": slot_ids_T,
        "table": table_DV,
        "layout": np.zeros((1, E), np.int32),
    }
    return [*(named | changes).values()]


def run(chip="ascend910", **changes):
    return emulator.compile_operator("rre_dispatch", chip)(*arguments(**changes))


def test_takes_what_it_is_defined_for():
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


def test_what_is_written_down_for_mindspore_is_what_is_defined():
    definition = emulator.compile_operator("rre_combine", "ascend910").definition()
    assert [definition[f"input{i}"]["name"] for i in range(3)] == ["rows", "positions", "residual"]
    assert definition["output0"] == {
        "name": "sum", "paramType": "required", "dtype": "float16,float32", "format": "ND,ND",
    }  # fmt: skip
    on_910b = emulator.compile_operator("rre_combine", "ascend910b").definition()
    assert on_910b["output0"]["dtype"] == "float16,float32,bfloat16"


def test_combine_knows_bfloat16_where_the_chip_does():
    rows = np.zeros((8, 32), emulator.BFLOAT16)
    positions = np.arange(8, dtype=np.int32)
    emulator.compile_operator("rre_combine", "ascend910b")(rows, positions, rows)
    with pytest.raises(emulator.EmulatorError, match="no such types on ascend910"):
        emulator.compile_operator("rre_combine", "ascend910")(rows, positions, rows)


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path):
    with pytest.raises(emulator.EmulatorError, match=r"compile: emulated-rre_combine-100-.*\.so cannot be written to"):
        emulator.compile_operator("rre_combine", "ascend910", folder=tmp_path / "missing")


def test_a_source_that_does_not_compile_is_one_error(tmp_path):
    for folder in ("ascend", "rre_combine"):
        shutil.copytree(OPERATORS / folder, tmp_path / folder)
    source = tmp_path / "rre_combine" / "ascend" / "op_kernel" / "rre_combine.h"
    source.write_text(source.read_text().replace("in_.EnQue(in);", "in_.EnqueueIt(in);"))
    with pytest.raises(emulator.EmulatorError, match="EnqueueIt") as caught:
        emulator.compile_operator("rre_combine", "ascend910", sources=tmp_path, folder=tmp_path)
    assert caught.value.rule == "compile"
