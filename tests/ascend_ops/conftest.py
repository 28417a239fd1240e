"""Fixtures of the operators' tests: every backend against reference.py, in graph and PyNative mode."""

import importlib

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ascend_ops import native

# in step with Python, so that an error is raised by the call that causes it
ms.set_context(mode=ms.PYNATIVE_MODE, pynative_synchronize=True)


@pytest.fixture(params=["composed", "cpu"], scope="module")
def backend(request):
    """Returns the module of an operator's backend: `backend("rre_dispatch")`."""

    def module(operator):
        if request.param == "cpu":
            try:
                native.library(operator)
            except native.CompileError as error:
                pytest.skip(str(error))
        return importlib.import_module(f"ascend_ops.{operator}.{request.param}")

    module.name = request.param
    return module


@pytest.fixture(params=[False, True], ids=["pynative", "graph"], scope="module")
def differentiate(request):
    """Runs a function of tensors that returns a tuple, in one of the two modes.

    `differentiate(function, arrays, wanted, dout)` returns, as arrays, all outputs, and the gradients of the first
    output's product with dout with respect to the arrays at the indices `wanted`.
    """

    def run(function, arrays, wanted, dout):
        def weighted(*inputs):
            outputs = function(*inputs[:-1])
            return (outputs[0] * inputs[-1]).sum(), outputs

        gradient = ms.value_and_grad(weighted, tuple(wanted), has_aux=True)

        def both(*inputs):
            return gradient(*inputs)

        compiled = ms.jit(both) if request.param else both
        (_, outputs), gradients = compiled(*(Tensor(array) for array in (*arrays, dout)))
        gradients = (gradients,) if isinstance(gradients, Tensor) else gradients
        return [output.asnumpy() for output in outputs], [each.asnumpy() for each in gradients]

    run.graph = request.param
    return run


def largest_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest error relative to the largest expected value."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max(initial=0) / max(np.abs(expected).max(initial=0), 1e-30))


@pytest.fixture(scope="session")
def error_of():
    return largest_error
