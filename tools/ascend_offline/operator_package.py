"""Writes a stand-in for an installed operator package: the operator definitions, without binaries.

MindSpore reads no more than these when it compiles the call of a custom operator. op_host itself generates them.
"""

import json
from pathlib import Path

from ascend_ops import emulator


def write(folder: Path, chip: str) -> None:
    """Writes the definitions for a chip; ASCEND_CUSTOM_OPP_PATH must then name the folder."""
    definitions = {}
    for kernel in emulator.KERNELS:
        definitions[emulator.cann_name(kernel)] = emulator.compile_operator(kernel, chip).definition()
    # without a device MindSpore knows no chip, and looks for a file with an empty chip name
    config = folder / "op_impl" / "ai_core" / "tbe" / "config" / "aic--ops-info.json"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(definitions, indent=1))
