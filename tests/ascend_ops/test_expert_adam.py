"""expert_adam: the backends give the same bits, follow the textbook, and do not change other experts."""

import os
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor

from ascend_ops import backends, native
from ascend_ops import expert_adam as package
from ascend_ops.expert_adam import coefficients, composed, expert_adam, reference

CONSTANTS = {"learning_rate": 0.01, "beta1": 0.8, "beta2": 0.95, "eps": 1e-20}


@pytest.fixture(scope="module")
def cpu():
    try:
        native.library("expert_adam")
    except native.CompileError as error:
        pytest.skip(str(error))
    from ascend_ops.expert_adam import cpu

    return cpu


@pytest.fixture(scope="module")
def expert_adam_op(cpu):
    if backends.chosen["expert_adam"] != "cpu":
        pytest.skip(f"{backends.VARIABLE} chose the composed backend")
    return package.expert_adam_op


def random_arrays(seed, shape, gradient_dtype):
    """Returns weight, moment1, moment2, gradient as during training, with gradients of widely different sizes."""
    rng = np.random.default_rng(seed)

    def normal():
        return rng.standard_normal(shape).astype(np.float32)

    size = np.float32(10.0 ** rng.integers(-6, 1))
    return [normal(), normal() * size, np.square(normal() * size), (normal() * size).astype(gradient_dtype)]


def as_bits(array):
    return array.view(f"u{array.itemsize}")


CASES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "experts": st.integers(1, 5),
        # rows of one block and of several, with and without a remainder
        "row": st.sampled_from([(1,), (7,), (3, 5), (4096,), (40, 1000), (4, 9000)]),
        "half": st.booleans(),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "gradient_scale": st.floats(0.01, 1),
        "eps": st.sampled_from([1e-8, 1e-20]),
        "one_eps": st.booleans(),
    }
)


def build(case):
    """Returns (arrays, experts, step counts, constants); the gradients of unlisted experts are NaN."""
    rng = np.random.default_rng(case["seed"])
    arrays = random_arrays(case["seed"], (case["experts"], *case["row"]), np.float16 if case["half"] else np.float32)
    experts_U = rng.permutation(case["experts"])[: rng.integers(0, case["experts"] + 1)]
    arrays[3][np.setdiff1d(np.arange(case["experts"]), experts_U)] = np.nan
    constants = CONSTANTS | {key: case[key] for key in ("weight_decay", "gradient_scale", "eps")}
    if not case["one_eps"]:
        constants["eps"] = case["eps"] * rng.uniform(1, 100, len(experts_U))
    return arrays, experts_U, rng.integers(1, 2000, len(experts_U)), constants


@given(case=CASES)
@settings(max_examples=60, deadline=None)
def test_listed_experts_follow_the_textbook_and_others_keep_every_bit(case):
    arrays, experts_U, steps_U, constants = build(case)
    before = [array.copy() for array in arrays]
    expected = reference.expert_adam(*before, experts_U, steps_U, **constants)

    expert_adam(*arrays, experts_U, steps_U, **constants)

    np.testing.assert_array_equal(as_bits(arrays[3]), as_bits(before[3]))
    for found, wanted, old in zip(arrays, expected, before, strict=False):
        for expert in range(case["experts"]):
            if expert in experts_U:
                largest = np.abs(wanted[expert]).max()
                np.testing.assert_allclose(found[expert], wanted[expert], rtol=2e-6, atol=1e-6 * largest)
            else:
                np.testing.assert_array_equal(as_bits(found[expert]), as_bits(old[expert]))


@given(case=CASES)
@settings(max_examples=60, deadline=None)
def test_backends_give_the_same_bits(cpu, case):
    arrays, experts_U, steps_U, constants = build(case)
    scalars = coefficients(steps_U, **constants)
    results = []

    for backend in (composed, cpu):
        copies = [array.copy() for array in arrays]
        backend.expert_adam(*copies, experts_U.astype(np.int32), scalars)
        results.append(copies)

    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(as_bits(one), as_bits(other))


def test_backends_agree_on_every_half_and_on_tiny_squares(cpu):
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(1, -1)
    tiny = np.geomspace(1e-30, 1e-15, 5000, dtype=np.float32).reshape(1, -1)  # squares down to 0 through subnormals

    for gradient in (halves, tiny):
        scalars = coefficients(np.array([3]), **CONSTANTS)
        results = []
        for backend in (composed, cpu):
            states = [np.zeros(gradient.shape, np.float32) for _ in range(3)]
            for _ in range(2):
                backend.expert_adam(*states, gradient, np.zeros(1, np.int32), scalars)
            results.append(states)
        for one, other in zip(*results, strict=True):
            np.testing.assert_array_equal(as_bits(one), as_bits(other))
        assert np.count_nonzero(results[0][0]) > 0.99 * gradient.size


@pytest.mark.parametrize("gradient_dtype", [np.float32, np.float16])
def test_a_gradient_that_is_not_finite_reaches_the_weights(gradient_dtype):
    gradient = np.array([[np.inf, -np.inf, np.nan, 1]], gradient_dtype)
    states = np.ones((3, 1, 4), np.float32)
    with np.errstate(invalid="ignore"):
        expert_adam(*states, gradient, np.array([0]), np.array([1]), **CONSTANTS)

    weight, moment1, moment2 = states
    np.testing.assert_array_equal(np.isnan(weight), [[True, True, True, False]])
    np.testing.assert_array_equal(moment1, np.float32([[np.inf, -np.inf, np.nan, 1]]))
    np.testing.assert_array_equal(moment2, np.float32([[np.inf, np.inf, np.nan, 1]]))


def test_many_steps_follow_the_textbook():
    rng = np.random.default_rng(0)
    states = [rng.standard_normal((2, 300)).astype(np.float32), *np.zeros((2, 2, 300), np.float32)]
    expected = states

    for step in range(1, 31):
        gradient = (1e-7 * rng.standard_normal((2, 300))).astype(np.float32)
        steps_U = np.array([step])
        expected = reference.expert_adam(*expected, gradient, [1], steps_U, **CONSTANTS, weight_decay=0.1)
        expert_adam(*states, gradient, np.array([1]), steps_U, **CONSTANTS, weight_decay=0.1)

    for array, wanted in zip(states, expected, strict=True):
        np.testing.assert_allclose(array, wanted, rtol=2e-6, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("gradient_dtype", [np.float32, np.float16])
@pytest.mark.parametrize("graph", [False, True], ids=["pynative", "graph"])
def test_the_operator_form_makes_the_same_update(expert_adam_op, graph, gradient_dtype):
    def update(*tensors):
        return expert_adam_op(*tensors) + 0  # something that depends on the update

    function = ms.jit(update) if graph else update
    shape = (4, 3, 7000)
    steps_U = np.array([1, 900])
    experts_U = np.array([3, 1], np.int32)
    one, other = (random_arrays(5, shape, gradient_dtype) for _ in range(2))
    for arrays in (one, other):
        arrays[2][1] *= np.float32(1e-38)  # subnormal, which MindSpore's graph threads would round to 0
        arrays[3][1] = 0
        arrays[3][0] = np.nan

    constants = CONSTANTS | {"weight_decay": 0.1, "gradient_scale": 0.5, "eps": np.array([1e-20, 1e-8])}

    for _ in range(2):
        expert_adam(*one, experts_U, steps_U, **constants)
        tensors = [Tensor.from_numpy(each) for each in (*other, experts_U, *coefficients(steps_U, **constants))]
        assert function(*tensors).asnumpy().tolist() == [2]
        for array, other_array in zip(one, other, strict=True):
            np.testing.assert_array_equal(as_bits(array), as_bits(other_array))


@pytest.mark.parametrize(
    ("experts", "message"), [([1, 4], "expert 4 is outside 4"), ([-1, 1], "expert -1"), ([2, 2], "expert 2 is listed")]
)
def test_operator_form_refuses_experts(expert_adam_op, experts, message):
    arrays = random_arrays(6, (4, 5), np.float32)
    before = [array.copy() for array in arrays]
    scalars = coefficients(np.array([1, 1]), **CONSTANTS)

    with pytest.raises(RuntimeError, match=message):
        expert_adam_op(*map(Tensor.from_numpy, (*arrays, np.array(experts, np.int32), *scalars))).asnumpy()
    assert all(np.array_equal(old, new) for old, new in zip(before, arrays, strict=True))


def test_operator_form_refuses_dtypes_and_shapes(expert_adam_op):
    arrays = random_arrays(6, (4, 5), np.float32)
    scalars = coefficients(np.array([1, 1]), **CONSTANTS)
    tensors = [Tensor.from_numpy(each) for each in (*arrays, np.array([0, 1], np.int32), *scalars)]

    with pytest.raises(TypeError, match=r"expected int32 experts_U.*Int64"):
        expert_adam_op(*tensors[:4], Tensor.from_numpy(np.array([0, 1])), *tensors[5:])
    with pytest.raises(ValueError, match=r"of one shape \[E, ...\].*\(4, 4\)"):
        expert_adam_op(Tensor.from_numpy(np.zeros((4, 4), np.float32)), *tensors[1:])
    with pytest.raises(ValueError, match=r"constants \[5\], got \(2,\)"):
        expert_adam_op(*tensors[:7], tensors[5])


def read_only(array):
    array.flags.writeable = False
    return array


REFUSED = [
    ("weight", lambda a: a.tolist(), TypeError, "weight is a list"),
    ("weight", lambda a: a.astype(np.float64), TypeError, "weight is float64; expected float32"),
    ("moment1", lambda a: a.astype(np.float16), TypeError, "moment1 is float16; expected float32"),
    ("gradient", lambda a: a.astype(np.int32), TypeError, "gradient is int32; expected float32 or float16"),
    ("moment2", lambda a: a[:, :4].copy(), ValueError, r"moment2 has shape \(3, 4\); expected .* weight \(3, 5\)"),
    ("weight", lambda a: np.zeros((), np.float32), ValueError, r"weight has shape \(\)"),
    ("gradient", np.asfortranarray, ValueError, r"gradient with strides \(4, 12\) is not C-contiguous"),
    ("moment1", read_only, ValueError, "moment1 is not writable"),
    ("experts_U", lambda a: np.array([0, 3]), ValueError, "expert 3 is outside 3 experts"),
    ("experts_U", lambda a: np.array([-1, 0]), ValueError, "expert -1 is outside 3 experts"),
    ("experts_U", lambda a: np.array([1, 1]), ValueError, "expert 1 is listed more than once"),
    ("experts_U", lambda a: np.array([True, False]), TypeError, "experts_U is bool; expected integers"),
    ("experts_U", lambda a: np.array([[0, 1]]), ValueError, r"experts_U has shape \(1, 2\)"),
    ("step_counts_U", lambda a: np.array([1]), ValueError, r"step_counts_U \(1,\) does not match experts_U \(2,\)"),
    ("step_counts_U", lambda a: np.array([1, 0]), ValueError, "step count 0 is below 1"),
    ("step_counts_U", lambda a: np.array([1.0, 2.0]), TypeError, "step_counts_U is float64; expected integers"),
    ("step_counts_U", lambda a: np.array(1), ValueError, r"step_counts_U has shape \(\)"),
    ("eps", lambda a: np.full(3, 1e-8), ValueError, r"eps has shape \(3,\); expected one number or \(2,\)"),
    ("eps", lambda a: 0.0, ValueError, "eps is 0.0; expected values above 0"),
    ("eps", lambda a: 1e-60, ValueError, "eps is 1e-60; expected values above 0 that float32 can hold"),
    ("beta1", lambda a: 1.0, ValueError, "beta1 is 1.0; expected at least 0 and below 1"),
    ("beta2", lambda a: -0.1, ValueError, "beta2 is -0.1"),
]


@pytest.mark.parametrize(("name", "change", "error", "message"), REFUSED, ids=[case[3] for case in REFUSED])
def test_wrong_arguments_are_refused_and_change_nothing(name, change, error, message):
    arrays = dict(zip(("weight", "moment1", "moment2", "gradient"), random_arrays(7, (3, 5), np.float32), strict=True))
    arguments = arrays | {"experts_U": np.array([0, 2]), "step_counts_U": np.array([1, 2])} | CONSTANTS
    before = {key: array.copy() for key, array in arrays.items()}
    arguments[name] = change(arguments[name])

    with pytest.raises(error, match=f"expert_adam: {message}"):
        expert_adam(**arguments)
    assert all(np.array_equal(before[key], array) for key, array in arrays.items())


def test_no_experts_and_empty_rows_are_fine():
    arrays = random_arrays(8, (3, 5), np.float32)
    before = arrays[0].copy()

    expert_adam(*arrays, np.zeros(0, np.int64), np.zeros(0, np.int64), **CONSTANTS)

    np.testing.assert_array_equal(arrays[0], before)
    expert_adam(*np.zeros((4, 2, 0), np.float32), np.array([1]), np.array([1]), **CONSTANTS)


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        cwd=native.PACKAGE.parent,
    )


def test_importing_expert_adam_does_not_import_mindspore():
    done = run_python("import sys, ascend_ops.expert_adam; sys.exit('mindspore' in sys.modules)")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"MINDPANGU_OPS": "composed"}, "only with the cpu backend, but MINDPANGU_OPS asks for composed"),
        ({"MINDPANGU_OPS": "", "CXX": "no-such-compiler"}, "no C++ compiler: no-such-compiler is not on PATH"),
    ],
)
def test_the_operator_form_needs_the_cpu_backend(environment, message):
    done = run_python("from ascend_ops.expert_adam import expert_adam_op", **environment)

    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]


def test_the_package_has_no_other_names():
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        package.nothing_of_the_kind  # noqa: B018
