"""Compiles a kernel with its host side against the emulator, for one chip."""

import hashlib
import os
import re
import subprocess
import tempfile
from pathlib import Path

from ascend_ops import native
from ascend_ops.emulator.compiled import EmulatorError, Operator

HERE = Path(__file__).parent
OPERATORS = HERE.parent

# CANN's macro for the core of a chip (the new one and the old one) → its value for each chip. Chips with the same value
# share a binary.
MACROS = {
    "__NPU_ARCH__": {"ascend910": 1001, "ascend910b": 2201, "ascend910_93": 2201},
    "__CCE_AICORE__": {"ascend910": 100, "ascend910b": 220, "ascend910_93": 220},
}
CHIPS = tuple(MACROS["__NPU_ARCH__"])

# kernel → the operator whose folder has it
KERNELS = {source.stem: source.parents[2].name for source in sorted(OPERATORS.glob("*/ascend/op_kernel/*.cpp"))}

TYPES = {"float16": "half", "float32": "float", "bfloat16": "bfloat16_t"}
FLAGS = (
    "-std=c++17",
    "-O1",
    "-g1",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",  # kernels loaded into one process share no symbols
    "-pthread",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-Wno-unused-variable",
)


def cann_name(kernel: str) -> str:
    """Returns the kernel's name in CANN: RreDispatch for rre_dispatch."""
    return "".join(word.capitalize() for word in kernel.split("_"))


def compile_operator(
    kernel: str,
    chip: str,
    *,
    sources: Path = OPERATORS,
    folder: Path | None = None,
    flags: tuple[str, ...] = (),
    macro: str = "__NPU_ARCH__",
) -> Operator:
    """Compiles and loads a kernel of `KERNELS`.

    Args:
        kernel: name of the source, e.g. `rre_dispatch`.
        chip: one of `CHIPS`.
        sources, folder, flags, macro: as in `library`.

    Raises:
        EmulatorError: the source does not compile; the message quotes the compiler.
        native.CompileError: no compiler.
    """
    return Operator(library(kernel, chip, sources=sources, folder=folder, flags=flags, macro=macro), kernel, chip)


def library(
    kernel: str,
    chip: str,
    *,
    sources: Path = OPERATORS,
    folder: Path | None = None,
    flags: tuple[str, ...] = (),
    macro: str = "__NPU_ARCH__",
) -> Path:
    """Compiles a kernel with its host side, for all dtypes of rows, and returns the library's path.

    Args:
        kernel, chip: as in `compile_operator`.
        sources: folder of the operators' folders; another one compiles changed sources.
        folder: folder of the library; None keeps it next to the CPU kernels and reuses it.
        flags: additional compiler flags, e.g. -fsanitize=address.
        macro: which of `MACROS` to define; each version of CANN defines one of them.
    """
    if kernel not in KERNELS or chip not in CHIPS:
        raise ValueError(f"{kernel} on {chip}: known are {', '.join(KERNELS)} and {', '.join(CHIPS)}")
    folder = folder or native.build_folder()
    root = sources / KERNELS[kernel] / "ascend"
    command = [
        native.compiler(),
        *FLAGS,
        *flags,
        f"-D{macro}={MACROS[macro][chip]}",
        f"-I{HERE / 'include'}",
        f"-I{sources / 'ascend'}",
        f"-I{root / 'op_host'}",
    ]
    unit = _unit(kernel, root)
    digest = hashlib.sha256("\0".join([*command, unit]).encode())
    headers = [*HERE.rglob("*.h"), *(sources / "ascend").glob("*.h"), *root.rglob("*.h"), *root.rglob("*.cpp")]
    for header in sorted(headers):
        digest.update(header.read_bytes())
    path = folder / f"emulated-{kernel}-{MACROS[macro][chip]}-{digest.hexdigest()[:16]}.so"
    if not path.exists():
        _compile(command, unit, path)
    return path


def _unit(kernel: str, root: Path) -> str:
    """Returns one translation unit: kernel, host side, and the emulator's entry points."""
    operator = cann_name(kernel)
    registration = re.compile(rf"REGISTER_TILING_DATA_CLASS\({operator}, (\w+)\)")
    for header in sorted((root / "op_host").glob("*_tiling.h")):
        if struct := registration.search(header.read_text("utf-8")):
            break
    else:
        raise EmulatorError("compile", f"no *_tiling.h in {root / 'op_host'} registers tiling data for {operator}")
    host = header.with_name(header.name.replace("_tiling.h", ".cpp"))
    # like CANN, compile the kernel once per dtype of the definition, each under its own name
    kernels = "".join(
        f"""
#define DTYPE_ROWS {type_}
#define {kernel} {kernel}_{dtype}
#include "{root / "op_kernel" / kernel}.cpp"
#undef {kernel}
#undef DTYPE_ROWS
"""
        for dtype, type_ in TYPES.items()
    )
    cases = " ".join(f'if (type == "{dtype}") return emulator::call({kernel}_{dtype}, arguments);' for dtype in TYPES)
    return f"""
#include "{header}"
#define EMULATOR_TILING optiling::{struct[1]}
#define EMULATOR_OPERATOR "{operator}"
{kernels}
#include "{host}"
#include "{HERE / "machine" / "host.h"}"
static void emulator_start(const std::string& type, const std::vector<uint8_t*>& arguments) {{ {cases} }}
#include "{HERE / "machine" / "entry.h"}"
"""


def _compile(command: list[str], unit: str, library: Path) -> None:
    try:
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            source = Path(scratch) / "unit.cpp"
            unfinished = Path(scratch) / library.name
            source.write_text(unit, "utf-8")
            done = subprocess.run(
                [*command, str(source), "-o", str(unfinished)], capture_output=True, encoding="utf-8", errors="replace"
            )
            if done.returncode != 0:
                errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
                raise EmulatorError("compile", "\n".join(errors[:8]))
            os.replace(unfinished, library)
    except OSError as error:
        raise EmulatorError("compile", f"{library.name} cannot be written to {library.parent}: {error}") from None
