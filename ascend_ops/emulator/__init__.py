"""Runs AscendC kernels on a CPU: the unchanged sources, one thread per core, with every rule of the device checked.

    combine = emulator.compile_operator("rre_combine", "ascend910")
    (sum_TH,), report = combine(rows_TH, positions_T, residual_TH)

`include/` has the part of CANN's headers that the kernels and their host side use, under CANN's names; `machine/` has
the emulated core and its rules (`rules.h` lists them). A broken rule raises an `EmulatorError` that names it.
`kernels.py` finds the kernels by their folders. What only a device can show stays unverified: speed, its compiler, its
caches, and whether our rules are those of the silicon.
"""

from ascend_ops.emulator.build import CHIPS, KERNELS, cann_name, compile_operator, library
from ascend_ops.emulator.compiled import BFLOAT16, EmulatorError, Operator, Report, from_bfloat16, to_bfloat16

__all__ = [
    "BFLOAT16",
    "CHIPS",
    "KERNELS",
    "EmulatorError",
    "Operator",
    "Report",
    "cann_name",
    "compile_operator",
    "from_bfloat16",
    "library",
    "to_bfloat16",
]
