"""Which implementation of an operator runs: chosen per operator, once, when its package is imported.

    cpu         the C++ kernels of cpu.cc, where MindSpore runs on the CPU and they compile
    composed    built-in MindSpore ops (NumPy for host-only operators): everywhere else

MINDPANGU_OPS=composed|cpu overrides; then a kernel that is not to be had is an error, not a notice.
"""

import importlib
import logging
import os
from types import ModuleType

from ascend_ops import native

VARIABLE = "MINDPANGU_OPS"
BACKENDS = ("composed", "cpu")

# operator → backend, of every operator that has been imported
chosen: dict[str, str] = {}

_log = logging.getLogger("ascend_ops")


def choose(operator: str, device: str | None = None) -> ModuleType:
    """The module `ascend_ops.<operator>.<backend>` to use.

    Args:
        operator: the folder's name.
        device: where it runs; None asks MindSpore for its device target, "CPU" is for host-only operators.

    Raises:
        OperatorError: MINDPANGU_OPS names no backend, or asks for kernels that cannot be compiled.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted and wanted not in BACKENDS:
        raise native.OperatorError(
            f"{VARIABLE}={wanted}: allowed is {' or '.join(BACKENDS)}, or nothing for the fastest that is there"
        )
    backend = wanted or ("cpu" if (device or _device_target()) == "CPU" else "composed")
    if backend == "cpu":
        try:
            native.library(operator)
        except native.CompileError as error:
            if wanted:
                raise
            _notice(str(error))
            backend = "composed"
    chosen[operator] = backend
    _log.info("%s: %s", operator, backend)
    return importlib.import_module(f"ascend_ops.{operator}.{backend}")


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
