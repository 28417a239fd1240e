"""What MindSpore looks at of an installed operator package when it compiles the call of a custom operator: the
definitions, made from op_host itself. There are no binaries in it."""

import json
from pathlib import Path

from ascend_ops import emulator


def write(folder: Path, chip: str) -> None:
    """A package with the definitions for a chip, for ASCEND_CUSTOM_OPP_PATH to name."""
    definitions = {}
    for kernel in emulator.KERNELS:
        definitions[emulator.cann_name(kernel)] = emulator.compile_operator(kernel, chip).definition()
    # without a device MindSpore knows no chip, and looks for the one with no name
    config = folder / "op_impl" / "ai_core" / "tbe" / "config" / "aic--ops-info.json"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(definitions, indent=1))
