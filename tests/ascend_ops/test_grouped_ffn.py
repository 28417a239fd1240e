"""grouped_ffn: every ragged group is multiplied by its own weights; padding stays zero."""

import importlib

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor

from ascend_ops import native
from ascend_ops.grouped_ffn import feed_forward, grouped_ffn, reference
from ascend_ops.grouped_ffn.composed import overflow_blocks

CASES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "rows": st.integers(1, 40),
        "slots": st.integers(1, 4),
        "experts": st.integers(1, 5),
        "hidden": st.integers(1, 19),
        "inner": st.integers(1, 35),
        "fill": st.sampled_from(["all", "some", "one expert", "none"]),
        "used_slots": st.integers(1, 4),
    }
)


def random_case(seed, rows, slots, experts, hidden, inner, fill, dtype, used_slots=None):
    """Returns (rows, counts, output gradient, slabs).

    `fill` says how many of the rows belong to experts; the others are padding. At most `used_slots` slots have rows, a
    random number each; None for any.
    """
    rng = np.random.default_rng(seed)
    used = {"all": rows, "one expert": rows, "none": 0, "some": rng.integers(0, rows + 1)}[fill]
    choices = rng.permutation(slots)[:used_slots]
    slot_of_row = rng.choice(choices, used, p=rng.dirichlet(np.ones(len(choices))))
    expert_of_row = np.full(used, experts - 1) if fill == "one expert" else rng.integers(0, experts, used)
    counts_G = np.bincount(slot_of_row * experts + expert_of_row, minlength=slots * experts).astype(np.int32)
    shapes = ((experts, hidden, inner), (experts, inner), (experts, inner, hidden), (experts, hidden))
    slabs = [(0.5 * rng.standard_normal(shape)).astype(dtype) for _ in range(slots) for shape in shapes]
    rows_TH, dout_TH = (rng.standard_normal((rows, hidden)).astype(dtype) for _ in range(2))
    return rows_TH, counts_G, dout_TH, slabs


def check(backend, differentiate, error_of, case, block_rows, bound):
    rows_TH, counts_G, dout_TH, slabs = case
    ffn = backend("grouped_ffn").grouped_ffn

    def function(rows_TH, counts_G, *slabs):
        return (ffn(rows_TH, counts_G, slabs, block_rows),)

    argnums = [0, *range(2, 2 + len(slabs))]
    (out_TH,), gradients = differentiate(function, (rows_TH, counts_G, *slabs), argnums, dout_TH)
    exact = [array.astype(np.float64) for array in (rows_TH, dout_TH, *slabs)]
    expected = reference.grouped_ffn(exact[0], counts_G, exact[2:])
    drows_TH, dslabs = reference.grouped_ffn_backward(exact[1], exact[0], counts_G, exact[2:])
    assert error_of(out_TH, expected) < bound
    for actual, expected in zip(gradients, (drows_TH, *dslabs), strict=True):
        assert error_of(actual, expected) < bound
        np.testing.assert_array_equal(actual == 0, expected == 0)  # padding and idle experts: exactly nothing


@given(shape=CASES, block_rows=st.integers(0, 9))
@settings(max_examples=8, deadline=None)
def test_every_backend_equals_the_reference(backend, differentiate, error_of, shape, block_rows):
    # float64 is the composed form's precision test; the kernel computes in float32
    dtype, bound = (np.float64, 1e-12) if backend.name == "composed" else (np.float32, 3e-6)
    case = random_case(**shape, dtype=dtype)
    check(backend, differentiate, error_of, case, block_rows, bound)


NETWORKS = {
    "swiglu": (("gate", "up", "down"), "silu"),
    "swiglu with biases": (("gate", "gate_bias", "up", "up_bias", "down", "down_bias"), "silu"),
    "series of swiglu": (("gate", "up", "scale", "shift", "down"), "silu"),
    "series of fast_gelu": (("up", "up_bias", "scale", "shift", "down", "down_bias"), "fast_gelu"),
    "no biases": (("up", "down"), "fast_gelu"),
}


@given(shape=CASES, block_rows=st.integers(0, 9), terms=st.integers(1, 3), network=st.sampled_from(sorted(NETWORKS)))
@settings(max_examples=4, deadline=None)
def test_other_networks_equal_the_reference(backend, differentiate, error_of, shape, block_rows, terms, network):
    tensors, activation = NETWORKS[network]
    dtype, bound = (np.float64, 1e-12) if backend.name == "composed" else (np.float32, 5e-6)
    rows_TH, counts_G, dout_TH, _ = random_case(**shape, dtype=dtype)
    rng = np.random.default_rng(shape["seed"])
    experts, hidden, inner = (shape[name] for name in ("experts", "hidden", "inner"))
    shapes = {
        "gate": (hidden, inner),
        "gate_bias": (inner,),
        "up": (hidden, inner),
        "up_bias": (inner,),
        "scale": (terms, inner),
        "shift": (terms, inner),
        "down": (inner, hidden),
        "down_bias": (hidden,),
    }
    slabs = [
        (0.5 * rng.standard_normal((experts, *shapes[name]))).astype(dtype)
        for _ in range(shape["slots"])
        for name in tensors
    ]
    ffn = backend("grouped_ffn").grouped_ffn

    def function(rows_TH, counts_G, *slabs):
        return (ffn(rows_TH, counts_G, slabs, block_rows, tensors, activation),)

    argnums = [0, *range(2, 2 + len(slabs))]

    (out_TH,), gradients = differentiate(function, (rows_TH, counts_G, *slabs), argnums, dout_TH)

    rows_TH, dout_TH, *slabs = (array.astype(np.float64) for array in (rows_TH, dout_TH, *slabs))
    assert error_of(out_TH, reference.grouped_ffn(rows_TH, counts_G, slabs, tensors, activation)) < bound
    drows_TH, dslabs = reference.grouped_ffn_backward(dout_TH, rows_TH, counts_G, slabs, tensors, activation)
    for actual, expected in zip(gradients, (drows_TH, *dslabs), strict=True):
        assert error_of(actual, expected) < bound


def test_the_gradients_of_the_reference_match_finite_differences():
    rng = np.random.default_rng(1)

    for tensors, activation in NETWORKS.values():
        shapes = {"gate": (3, 4), "up": (3, 4), "gate_bias": (4,), "up_bias": (4,), "scale": (2, 4), "shift": (2, 4)}
        shapes |= {"down": (4, 3), "down_bias": (3,)}
        expert = {name: rng.standard_normal(shapes[name]) for name in tensors}
        x, dout = rng.standard_normal((2, 5, 3))
        dx, gradients = reference.feed_forward_backward(dout, x, expert, activation)
        for name, array, gradient in [("x", x, dx), *((name, expert[name], gradients[name]) for name in tensors)]:
            for index in np.ndindex(array.shape):
                value = array[index]
                losses = []
                for step in (1e-6, -1e-6):
                    array[index] = value + step
                    losses.append((reference.feed_forward(x, expert, activation) * dout).sum())
                array[index] = value
                assert gradient[index] == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize(
    ("tensors", "activation", "message"),
    [
        (("up", "gate", "down", "down_bias"), "silu", "in this order"),
        (("gate", "up", "scale", "down"), "silu", "scale with shift"),
        (("up", "up_bias", "down", "down_bias"), "relu", "activation is 'relu'; expected fast_gelu or silu"),
    ],
)
def test_invalid_networks_are_refused(tensors, activation, message):
    rows_TH, counts_G, _, slabs = random_case(5, 4, 1, 2, 3, 3, "all", np.float32)
    with pytest.raises(ValueError, match=message):
        grouped_ffn(Tensor(rows_TH), Tensor(counts_G), [Tensor(slab) for slab in slabs], 0, tensors, activation)


@pytest.mark.parametrize("experts", [1, 3])
def test_groups_of_many_pieces_and_tiles_equal_the_reference(backend, differentiate, error_of, experts):
    """More rows than a piece and more columns than a tile of the kernel."""
    case = random_case(3, 1400, 2, experts, 24, 1100, "one expert", np.float32)
    check(backend, differentiate, error_of, case, 0, 3e-6)


def test_slots_of_any_size_have_the_rows_computed_by_hand(backend):
    """Rows of slot 1 begin where slot 0's end; a slot in the middle has none; the last row is padding."""
    rows_TH = np.arange(1, 8, dtype=np.float32)[:, None]
    slabs = []
    for slot in range(4):  # expert e of slot s adds 100 s + 10 e to a large row, which the activation leaves as it is
        biases = np.array([[100 * slot], [100 * slot + 10]], np.float32)
        slabs += [np.ones((2, 1, 1), np.float32), np.full((2, 1), 50, np.float32)]
        slabs += [np.ones((2, 1, 1), np.float32), biases]
    counts_G = Tensor(np.array([0, 3, 1, 1, 0, 0, 1, 0], np.int32))

    out_TH = backend("grouped_ffn").grouped_ffn(Tensor(rows_TH), counts_G, [Tensor(slab) for slab in slabs])

    assert out_TH.asnumpy().ravel().tolist() == [61, 62, 63, 154, 165, 356, 0]


def test_the_kernel_does_not_read_weights_of_experts_without_rows(differentiate):
    """NaN in an unused slot's slab and in a used slot's idle expert reaches nothing: they take part in no product."""
    try:
        ffn = importlib.import_module("ascend_ops.grouped_ffn.cpu").grouped_ffn
    except native.CompileError as error:
        pytest.skip(str(error))
    rows_TH, _, dout_TH, slabs = random_case(7, 40, 3, 2, 6, 9, "all", np.float32)
    counts_G = np.array([11, 0, 0, 0, 20, 6], np.int32)  # slot 0's expert 1 and all of slot 1 have no rows

    def run(slabs):
        argnums = [0, *range(2, 2 + len(slabs))]
        function = lambda rows_TH, counts_G, *slabs: (ffn(rows_TH, counts_G, slabs),)  # noqa: E731
        (out_TH,), gradients = differentiate(function, (rows_TH, counts_G, *slabs), argnums, dout_TH)
        return [out_TH, *gradients]

    poisoned = [slab.copy() for slab in slabs]
    for tensor in poisoned[:4]:
        tensor[1] = np.nan

    for tensor in poisoned[4:8]:
        tensor[:] = np.nan

    for expected, actual in zip(run(slabs), run(poisoned), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_other_dtypes_have_a_result_with_every_backend(backend):
    rows_TH, counts_G, _, slabs = random_case(4, 9, 1, 3, 4, 5, "all", np.float16)
    out_TH = backend("grouped_ffn").grouped_ffn(Tensor(rows_TH), Tensor(counts_G), [Tensor(slab) for slab in slabs])

    exact = reference.grouped_ffn(rows_TH.astype(float), counts_G, [slab.astype(float) for slab in slabs])

    assert np.abs(out_TH.asnumpy() - exact).max() < 1e-2


def test_extreme_activations_neither_overflow_nor_lose_their_sign(backend):
    """e^x neither overflows nor loses its sign at either end."""
    identity = [np.eye(1, dtype=np.float32)[None], np.zeros((1, 1), np.float32)] * 2
    rows_TH = np.array([[-1e4], [-60.0], [-0.0], [1e-30], [60.0], [1e4]], np.float32)
    out_TH = backend("grouped_ffn").grouped_ffn(
        Tensor(rows_TH), Tensor(np.array([6], np.int32)), [Tensor(tensor) for tensor in identity]
    )

    expected = reference.fast_gelu(np.clip(rows_TH.astype(np.float64), -400, None))
    np.testing.assert_allclose(out_TH.asnumpy(), expected, rtol=1e-6, atol=1e-30)


@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=9), block_rows=st.integers(1, 50))
def test_overflow_blocks_suffice_for_every_distribution(counts, block_rows):
    needed = sum(max(-(-count // block_rows) - 1, 0) for count in counts)
    assert needed <= max(overflow_blocks(sum(counts), block_rows), 0)


@pytest.mark.parametrize(
    ("counts", "message"), [([3, -1], "group 1 has -1 rows"), ([3, 2], "the counts add up to 5 rows of 4")]
)
def test_the_kernel_refuses_counts_that_do_not_fit(backend, counts, message):
    if backend.name != "cpu":
        pytest.skip("the composed form cannot look at counts")
    rows_TH, _, _, slabs = random_case(5, 4, 1, 2, 3, 3, "all", np.float32)

    with pytest.raises(RuntimeError, match=message):
        backend("grouped_ffn").grouped_ffn(
            Tensor(rows_TH), Tensor(np.array(counts, np.int32)), [Tensor(slab) for slab in slabs]
        ).asnumpy()


def test_wrong_arguments_are_refused():
    rows_TH, counts_G, _, slabs = random_case(6, 4, 1, 2, 3, 5, "all", np.float32)
    rows_TH = Tensor(rows_TH)
    counts_G = Tensor(counts_G)
    slabs = [Tensor(slab) for slab in slabs]

    with pytest.raises(ValueError, match="4 slabs per slot"):
        grouped_ffn(rows_TH, counts_G, slabs[:3])
    with pytest.raises(ValueError, match=r"for each slot up \[2, 3, 5\], up_bias \[2, 5\].*got .*\(2, 5\)"):
        grouped_ffn(rows_TH, counts_G, [slabs[0], slabs[1], slabs[0], slabs[3]])
    with pytest.raises(ValueError, match=r"counts_G \[D·E\]"):
        grouped_ffn(rows_TH, counts_G[:1], slabs)
    with pytest.raises(TypeError, match="slabs of one dtype"):
        grouped_ffn(rows_TH.astype(ms.float16), counts_G, slabs)
    with pytest.raises(ValueError, match="block_rows is -1"):
        grouped_ffn(rows_TH, counts_G, slabs, -1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda up, bias, down, end: (up[:-1], bias, down, end), ValueError, r"expected up \[3, 5\].*got \(2, 5\)"),
        (lambda up, bias, down, end: (up, bias[:2], down, end), ValueError, r"expected up \[3, 5\], up_bias \[5\]"),
        (lambda up, bias, down, end: (up, bias, down), ValueError, "expected rows_TH .* and 4 weights"),
        (lambda up, bias, down, end: (up.astype(ms.float16), bias, down, end), TypeError, "weights of one dtype"),
        (lambda up, bias, down, end: (up, bias.astype(ms.float16), down, end), TypeError, "biases of that dtype or"),
    ],
)
def test_a_feed_forward_network_with_other_weights_is_refused(change, error, message):
    rng = np.random.default_rng(0)
    weights = [Tensor(rng.standard_normal(shape).astype(np.float32)) for shape in ((3, 5), (5,), (5, 3), (3,))]
    rows_TH = Tensor(rng.standard_normal((4, 3)).astype(np.float32))

    with pytest.raises(error, match=f"feed_forward: .*{message}"):
        feed_forward(rows_TH, change(*weights))
    with pytest.raises(ValueError, match="feed_forward: activation is 'relu'"):
        feed_forward(rows_TH, weights, activation="relu")
    with pytest.raises(ValueError, match="feed_forward: tensors are down, up"):
        feed_forward(rows_TH, weights[::2], ("down", "up"))
