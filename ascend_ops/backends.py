"""Which implementation of an operator runs: chosen per operator, once, when its package is imported.

    cpu         the C++ kernels of cpu.cc, where MindSpore runs on the CPU and they compile
    ascend      the AscendC kernels of ascend/, where their operator package is installed (unverified on hardware)
    composed    built-in MindSpore ops (NumPy for host-only operators): everywhere else

MINDPANGU_OPS=composed|cpu|ascend overrides; then a kernel that is not to be had is an error, not a notice. With
`ascend` on a CPU the emulator runs the AscendC kernels, for tests; operators without them keep their usual backend.
"""

import importlib
import importlib.util
import logging
import os
from types import ModuleType

from ascend_ops import native

VARIABLE = "MINDPANGU_OPS"
BACKENDS = ("composed", "cpu", "ascend")

# operator → backend, of every operator that has been imported
chosen: dict[str, str] = {}

_log = logging.getLogger("ascend_ops")


def choose(operator: str, device: str | None = None) -> ModuleType:
    """The module `ascend_ops.<operator>.<backend>` to use.

    Args:
        operator: the folder's name.
        device: where it runs; None asks MindSpore for its device target, "CPU" is for host-only operators.

    Raises:
        OperatorError: MINDPANGU_OPS names no backend, or asks for kernels that are not to be had.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted and wanted not in BACKENDS:
        raise native.OperatorError(
            f"{VARIABLE}={wanted}: allowed is {' or '.join(BACKENDS)}, or nothing for the fastest that is there"
        )
    device = device or _device_target()
    usual = {"CPU": "cpu", "Ascend": "ascend"}.get(device, "composed")
    # an operator without an AscendC form keeps its usual backend; the composed form can always serve
    for backend in (wanted or usual, usual if wanted == "ascend" else "composed", "composed"):
        try:
            _refuse_what_is_missing(operator, backend, device)
        except native.OperatorError as problem:
            if backend == wanted:
                raise
            _notice(str(problem))
            continue
        if has_form(operator, backend):
            break
    chosen[operator] = backend
    _log.info("%s: %s", operator, backend)
    return importlib.import_module(f"ascend_ops.{operator}.{backend}")


def has_form(operator: str, backend: str) -> bool:
    """Whether the operator has this form, and the chip has what it is made of (`ON_THIS_CHIP` of the form)."""
    name = f"ascend_ops.{operator}.{backend}"
    return importlib.util.find_spec(name) is not None and getattr(importlib.import_module(name), "ON_THIS_CHIP", True)


def _refuse_what_is_missing(operator: str, backend: str, device: str) -> None:
    """Raises OperatorError where there is no compiler for the CPU, or no operator package for Ascend."""
    if backend == "cpu":
        native.library(operator)
    elif backend == "ascend" and device == "Ascend":
        from ascend_ops.ascend.operators import find_package

        if missing := find_package(operator):
            raise native.OperatorError(missing)


def describe() -> str:
    """The choice in words, e.g. "cpu (grouped_ffn, rre_dispatch)"."""
    names = {backend: sorted(name for name, each in chosen.items() if each == backend) for backend in BACKENDS}
    return ", ".join(f"{backend} ({', '.join(names[backend])})" for backend in reversed(BACKENDS) if names[backend])


def custom_op(operator: str, function: str, out_shape, out_dtype, bprop=None):
    """An `ops.Custom` of a function in an operator's compiled kernels; the rest as ops.Custom takes it."""
    from mindspore import ops

    return ops.Custom(f"{native.library(operator)}:{function}", out_shape, out_dtype, func_type="aot", bprop=bprop)


def _device_target() -> str:
    import mindspore

    return mindspore.get_context("device_target")


_noticed: set[str] = set()


def _notice(reason: str) -> None:
    """One for all operators: what fails for the first fails for most."""
    if not _noticed:
        _log.warning("The composed operators are used, which are slower: %s", reason)
    _noticed.add(reason)
