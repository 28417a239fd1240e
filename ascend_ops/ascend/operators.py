"""Calls the AscendC operators of this project by name. Unverified on hardware.

On Ascend the name is looked up in the operator package that build_opp.sh installs. On a CPU the emulator runs the same
sources, one thread per core: slow, and meant for tests.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from ascend_ops import emulator

PACKAGE = Path(__file__).parent.parent / "_build" / "opp" / "vendors" / "mindpangu"
VARIABLE = "ASCEND_CUSTOM_OPP_PATH"
EMULATED_CHIP = "ascend910"

GRANULE_BYTES = 32  # the smallest transfer of a DMA
INTS = GRANULE_BYTES // 4  # int32 per granule
SHORTS = GRANULE_BYTES // 2  # uint16 per granule
ITEM_BYTES = {ms.float16: 2, ms.float32: 4, ms.bfloat16: 2}


def find_package(operator: str) -> str | None:
    """Registers the operator package that build_opp.sh has installed with CANN.

    Returns:
        None if a package has all kernels of the operator's folder, or if the folder has none, because its AscendC form
        uses only MindSpore's own operators. Otherwise the problem and its remedy.
    """
    names = [emulator.cann_name(kernel) for kernel, owner in emulator.KERNELS.items() if owner == operator]
    if not names:
        return None
    if PACKAGE.is_dir() and str(PACKAGE) not in os.environ.get(VARIABLE, ""):
        os.environ[VARIABLE] = os.pathsep.join(filter(None, (str(PACKAGE), os.environ.get(VARIABLE))))
    for folder in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        configs = Path(folder).glob("op_impl/ai_core/tbe/config/**/aic-*-ops-info.json")
        if any(all(f'"{name}"' in text for name in names) for text in map(Path.read_text, configs)):
            return None
    return (
        f"no operator package with {', '.join(names)} in {PACKAGE} or {VARIABLE}: "
        "build it with bash ascend_ops/build_opp.sh"
    )


def custom_op(kernel: str, out_shape: Callable, out_dtype: Callable, bprop: Callable | None = None) -> Any:
    """Returns the operator that runs a kernel of `ascend/op_kernel`.

    Args:
        kernel: name of its source.
        out_shape, out_dtype, bprop: as `ops.Custom` takes them.
    """
    if ms.get_context("device_target") == "Ascend":
        function = f"aclnn{emulator.cann_name(kernel)}"
    else:
        function = f"{emulator.library(kernel, EMULATED_CHIP)}:emulator_aot"
    return ops.Custom(function, out_shape, out_dtype, func_type="aot", bprop=bprop)


def takes(shape: Sequence[int], dtype: Any) -> bool:
    """True if the kernels support the dtype, and rows of this shape are whole granules."""
    return dtype in ITEM_BYTES and shape[-1] * ITEM_BYTES[dtype] % GRANULE_BYTES == 0


@ops.constexpr
def takes_rows(shape: Sequence[int], dtype: Any) -> bool:
    """Evaluates `takes` while a graph is compiled."""
    return takes(shape, dtype)


def padded(array: Tensor, multiple: int, fill: int = 0) -> Tensor:
    """Pads the last axis to a multiple."""
    missing = -array.shape[-1] % multiple
    if missing == 0:
        return array
    return ops.concat((array, ops.cast(_filled((*array.shape[:-1], missing), fill), array.dtype)), -1)


@ops.constexpr
def _filled(shape, value):
    return Tensor(np.full(shape, value, np.int32))
