"""Chooses the implementation of an operator, once, when its package is imported.

    cpu         the C++ kernels of cpu.cc, if MindSpore runs on the CPU and they compile
    ascend      the AscendC kernels of ascend/, if their operator package is installed (unverified on hardware)
    composed    built-in MindSpore ops (NumPy for host-only operators): everywhere else

MINDPANGU_OPS=composed|cpu|ascend overrides the choice for all operators, and
MINDPANGU_OPS=causal_attention=composed,tied_head_loss=cpu for some of them; an unavailable kernel is then an error
instead of a warning. With `ascend` on a CPU the emulator runs the AscendC kernels, for tests; operators without AscendC
kernels keep their usual backend.
"""

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ascend_ops import native

VARIABLE = "MINDPANGU_OPS"
BACKENDS = ("composed", "cpu", "ascend")

chosen: dict[str, str] = {}
"""Operator → its backend, for every operator that has been imported."""

_log = logging.getLogger("ascend_ops")


def choose(operator: str, device: str | None = None) -> ModuleType:
    """Returns the module `ascend_ops.<operator>.<backend>` to use.

    Args:
        operator: name of the operator's folder.
        device: device that the operator runs on; None asks MindSpore for its device target. Host-only operators pass
            "CPU".

    Raises:
        OperatorError: MINDPANGU_OPS names no backend, or asks for kernels that are unavailable.
    """
    wanted = wanted_backend(operator)
    device = device or _device_target()
    usual = {"CPU": "cpu", "Ascend": "ascend"}.get(device, "composed")
    # an operator without an AscendC form keeps its usual backend; the composed form always works
    for backend in (wanted or usual, usual if wanted == "ascend" else "composed", "composed"):
        try:
            _require(operator, backend, device)
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


def wanted_backend(operator: str) -> str:
    """Returns the backend that MINDPANGU_OPS asks for; "" if it leaves the choice.

    Raises:
        OperatorError: it names no backend, or an operator that does not exist.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if "=" not in text:
        return _backend_named(text)
    wanted: dict[str, str] = {}
    for entry in text.split(","):
        name, sign, backend = (part.strip() for part in entry.partition("="))
        if not sign or name not in operators():
            raise native.OperatorError(
                f"{VARIABLE}={text!r}: {entry.strip()!r} is not operator=backend; the operators are "
                f"{', '.join(operators())}"
            )
        if name in wanted:
            raise native.OperatorError(f"{VARIABLE}={text!r} names {name} twice; leave one of them out")
        wanted[name] = _backend_named(backend, name)
    return wanted.get(operator, "")


def _backend_named(backend: str, operator: str = "") -> str:
    if backend not in BACKENDS and (backend or operator):
        asked = f"{operator}={backend}" if operator else backend
        raise native.OperatorError(
            f"{VARIABLE} asks for {asked!r}: allowed is {' or '.join(BACKENDS)}, or nothing for the fastest available"
        )
    return backend


@functools.cache
def operators() -> tuple[str, ...]:
    """Returns the names of all operators."""
    return tuple(sorted(path.parent.name for path in native.PACKAGE.glob("*/composed.py")))


def has_form(operator: str, backend: str) -> bool:
    """True if the operator has this form, and its `ON_THIS_CHIP`, if it has one, is True."""
    name = f"ascend_ops.{operator}.{backend}"
    return importlib.util.find_spec(name) is not None and getattr(importlib.import_module(name), "ON_THIS_CHIP", True)


def _require(operator: str, backend: str, device: str) -> None:
    """Raises OperatorError if the CPU kernels do not compile, or the operator package for Ascend is missing."""
    if backend == "cpu":
        native.library(operator)
    elif backend == "ascend" and device == "Ascend":
        from ascend_ops.ascend.operators import find_package

        if missing := find_package(operator):
            raise native.OperatorError(missing)


def describe() -> str:
    """Describes the choice, e.g. "cpu (grouped_ffn, rre_dispatch)"."""
    names = {backend: sorted(name for name, each in chosen.items() if each == backend) for backend in BACKENDS}
    return ", ".join(f"{backend} ({', '.join(names[backend])})" for backend in reversed(BACKENDS) if names[backend])


def custom_op(
    operator: str,
    function: str,
    out_shape: Callable,
    out_dtype: Callable,
    bprop: Callable | None = None,
    variant: str = "",
) -> Any:
    """Returns the `ops.Custom` of a function in an operator's cpu.cc.

    Args:
        operator: name of the operator's folder.
        function: name of the function.
        out_shape, out_dtype, bprop: as for ops.Custom.
        variant: must differ for two of the same function whose results can differ for equal inputs: PyNative mode
            remembers the results' shapes by the name, the attributes, and the shapes of the inputs.
    """
    from mindspore import ops

    custom = ops.Custom(f"{native.library(operator)}:{function}", out_shape, out_dtype, func_type="aot", bprop=bprop)
    if variant:
        custom.add_prim_attr("variant", variant)
    return custom


def _device_target() -> str:
    import mindspore

    return mindspore.get_context("device_target")


_noticed: set[str] = set()


def _notice(reason: str) -> None:
    """Warns once for all operators, because the reason is usually the same."""
    if not _noticed:
        _log.warning("using the slower composed operators: %s", reason)
    _noticed.add(reason)
