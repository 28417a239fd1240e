"""The AscendC kernels of all operators, as the `emulation.py` in each operator's folder describes them.

    KERNELS: tuple[Kernel, ...]

A folder with kernels in `ascend/op_kernel` is found automatically; there is no other list of operators.
"""

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ascend_ops.emulator.build import KERNELS
from ascend_ops.emulator.cases import Shape
from ascend_ops.emulator.compiled import EmulatorError, Operator, Report

Check = Callable[[Operator, Shape, str, int], Report]
"""Compares a random call (operator, shape, dtype, seed) with the reference; raises WrongResult if a bit differs."""

Mutants = Mapping[str, Mapping[str, tuple[str, str]]]
"""File below ascend_ops → name of the mutant → (text in the file, replacement of its first occurrence)."""

WITHOUT_BFLOAT16 = ("ascend910",)


@dataclass(frozen=True)
class Kernel:
    """One AscendC kernel: its checks, its permitted costs, and the mutants of its sources.

    Attributes:
        name: name of its source in `ascend/op_kernel`.
        checks: must pass on any random call. The first one's report is what `python -m ascend_ops.emulator` prints.
        least_bytes: (shape, bytes of a row's element, seed of the first check) → bytes of reading every input and
            writing every output once.
        most_launches: shape → the DMA launches that are acceptable at large shapes.
        cann_cost: (shape, bytes of a row's element) → bytes and DMA launches of CANN's own operators for 910B, by
            arithmetic; None if they have nothing that does the same.
        dtypes: dtypes of rows, on chips that have them.
        sources: files below ascend_ops. `tools/mutate_kernels.py` removes their statements that order, free, wait, or
            declare the kernel's type, one at a time.
        mutants: changes that a rule or a check must reject.
        tight_mutants: mistakes in dividing the unified buffer, rejected on rows that fill it to its last granule.
    """

    name: str
    checks: tuple[Check, ...]
    least_bytes: Callable[[Shape, int, int], int]
    most_launches: Callable[[Shape], float]
    cann_cost: Callable[[Shape, int], tuple[int, int]] | None = None
    dtypes: tuple[str, ...] = ("float16", "float32", "bfloat16")
    sources: tuple[str, ...] = ()
    mutants: Mutants = field(default_factory=dict)
    tight_mutants: Mutants = field(default_factory=dict)

    def dtypes_on(self, chip: str) -> tuple[str, ...]:
        """Returns those of `dtypes` that the chip supports."""
        return tuple(dtype for dtype in self.dtypes if dtype != "bfloat16" or chip not in WITHOUT_BFLOAT16)


@functools.cache
def kernels() -> dict[str, Kernel]:
    """Returns every kernel by name.

    Raises:
        EmulatorError: an `emulation.py` does not describe exactly the kernels of its folder.
    """
    found: dict[str, Kernel] = {}
    for operator in sorted(set(KERNELS.values())):
        described = {kernel.name: kernel for kernel in _describe(operator)}
        built = {kernel for kernel, owner in KERNELS.items() if owner == operator}
        if set(described) != built:
            raise EmulatorError(
                "emulation",
                f"{operator}/emulation.py describes {', '.join(sorted(described)) or 'nothing'}; "
                f"{operator}/ascend/op_kernel has {', '.join(sorted(built))}",
            )
        found |= described
    return found


def _describe(operator: str) -> tuple[Kernel, ...]:
    # imported late, so that operators may import the emulator
    name = f"ascend_ops.{operator}.emulation"
    try:
        return importlib.import_module(name).KERNELS
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise EmulatorError("emulation", f"{operator} has kernels, but no emulation.py that describes them") from None


def check(operator: Operator, shape: Shape, dtype: str, seed: int) -> None:
    """Runs all checks of a kernel at one shape."""
    for each in kernels()[operator.kernel].checks:
        each(operator, shape, dtype, seed)
