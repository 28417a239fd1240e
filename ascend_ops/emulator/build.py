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

# chip → __CCE_AICORE__; chips of one number share a binary
CHIPS = {"ascend910": 100, "ascend910b": 220, "ascend910_93": 220}

# kernel → the operator whose folder has it
KERNELS = {source.stem: source.parents[2].name for source in sorted(OPERATORS.glob("*/ascend/op_kernel/*.cpp"))}

TYPES = {"float16": "half", "float32": "float", "bfloat16": "bfloat16_t"}
FLAGS = (
    "-std=c++17",
    "-O1",
    "-g1",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",  # kernels that are loaded together share nothing
    "-pthread",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-Wno-unused-variable",
)


def cann_name(kernel: str) -> str:
    """The kernel's name in CANN: RreDispatch for rre_dispatch."""
    return "".join(word.capitalize() for word in kernel.split("_"))


def compile_operator(
    kernel: str, chip: str, *, sources: Path = OPERATORS, folder: Path | None = None, flags: tuple[str, ...] = ()
) -> Operator:
    """The kernel of `KERNELS`, compiled and loaded.

    Args:
        kernel: name of the source, as `rre_dispatch`.
        chip: of `CHIPS`.
        sources, folder, flags: as of `library`.

    Raises:
        EmulatorError: the source does not compile; the message has what the compiler said.
        native.CompileError: no compiler.
    """
    return Operator(library(kernel, chip, sources=sources, folder=folder, flags=flags), kernel, chip)


def library(
    kernel: str, chip: str, *, sources: Path = OPERATORS, folder: Path | None = None, flags: tuple[str, ...] = ()
) -> Path:
    """The compiled kernel with its host side, for all dtypes of rows.

    Args:
        sources: where the operators' folders lie; another place for changed ones.
        folder: where the library goes; None keeps it next to the CPU kernels, and uses it again.
        flags: more of them for the compiler, as -fsanitize=address.
    """
    if kernel not in KERNELS or chip not in CHIPS:
        raise ValueError(f"{kernel} on {chip}: known are {', '.join(KERNELS)} and {', '.join(CHIPS)}")
    folder = folder or native.build_folder()
    root = sources / KERNELS[kernel] / "ascend"
    command = [
        native.compiler(),
        *FLAGS,
        *flags,
        f"-D__CCE_AICORE__={CHIPS[chip]}",
        f"-I{HERE / 'include'}",
        f"-I{sources / 'ascend'}",
        f"-I{root / 'op_host'}",
    ]
    unit = _unit(kernel, root)
    digest = hashlib.sha256("\0".join([*command, unit]).encode())
    headers = [*HERE.rglob("*.h"), *(sources / "ascend").glob("*.h"), *root.rglob("*.h"), *root.rglob("*.cpp")]
    for header in sorted(headers):
        digest.update(header.read_bytes())
    path = folder / f"emulated-{kernel}-{CHIPS[chip]}-{digest.hexdigest()[:16]}.so"
    if not path.exists():
        _compile(command, unit, path)
    return path


def _unit(kernel: str, root: Path) -> str:
    """One translation unit: kernel, host side, and the emulator's way in."""
    operator = cann_name(kernel)
    registration = re.compile(rf"REGISTER_TILING_DATA_CLASS\({operator}, (\w+)\)")
    for header in sorted((root / "op_host").glob("*_tiling.h")):
        if struct := registration.search(header.read_text()):
            break
    else:
        raise EmulatorError("compile", f"no *_tiling.h in {root / 'op_host'} registers tiling data for {operator}")
    host = header.with_name(header.name.replace("_tiling.h", ".cpp"))
    # CANN compiles a kernel for each dtype of the definition; so does this, under names of their own
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
            source, unfinished = Path(scratch) / "unit.cpp", Path(scratch) / library.name
            source.write_text(unit)
            done = subprocess.run(
                [*command, str(source), "-o", str(unfinished)], capture_output=True, text=True, errors="replace"
            )
            if done.returncode != 0:
                errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
                raise EmulatorError("compile", "\n".join(errors[:8]))
            os.replace(unfinished, library)
    except OSError as error:
        raise EmulatorError("compile", f"{library.name} cannot be written to {library.parent}: {error}") from None
