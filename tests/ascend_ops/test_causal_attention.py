"""causal_attention: with documents and rotary positions, forward and backward, with every backend."""

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor

from ascend_ops.causal_attention import causal_attention, reference

CASES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "batch": st.integers(1, 3),
        "length": st.integers(1, 20),
        "heads": st.integers(1, 3),
        "half": st.sampled_from([2, 8]),  # 1/√K is exact in float32
        "documents": st.booleans(),
        "rotates": st.booleans(),
    }
)


def random_case(seed, batch, length, heads, half, documents, rotates, dtype):
    """Returns query, key, value, dout, first keys, the number of heads, and the rotation."""
    rng = np.random.default_rng(seed)
    rows = [rng.standard_normal((batch * length, heads * 2 * half)).astype(dtype) for _ in range(4)]
    begins_BS = rng.random((batch, length)) < 0.2
    first_keys_BS = np.maximum.accumulate(np.where(begins_BS, np.arange(length), 0), 1).astype(np.int32)
    if not documents:
        first_keys_BS[:] = 0
    rotation = ()
    if rotates:
        angles_CK = rng.standard_normal((length + 3, half))
        positions_BS = rng.integers(0, length + 3, (batch, length)).astype(np.int32)
        rotation = (positions_BS, np.cos(angles_CK).astype(dtype), np.sin(angles_CK).astype(dtype))
    return (*rows, first_keys_BS, heads, rotation)


def check(backend, differentiate, error_of, case, bound, compared=(0, 1, 2)):
    """Compares the result and the `compared` gradients with the reference."""
    query, key, value, dout, first_keys_BS, heads, rotation = case
    attention = backend("causal_attention").causal_attention

    def function(query, key, value, first_keys_BS, *rotation):
        return (attention(query, key, value, first_keys_BS, heads, rotation),)

    (out,), gradients = differentiate(function, (query, key, value, first_keys_BS, *rotation), (0, 1, 2), dout)

    exact = [array.astype(np.float64) for array in (query, key, value)]
    others = (first_keys_BS, heads, rotation)
    assert error_of(out, reference.causal_attention(*exact, *others)) < bound
    expected = reference.causal_attention_backward(dout.astype(np.float64), *exact, *others)
    scale = max(np.abs(expected[i]).max() for i in compared)
    for i in compared:
        assert np.abs(gradients[i] - expected[i]).max() < bound * scale


@given(shape=CASES)
@settings(max_examples=5, deadline=None)
def test_every_backend_equals_the_reference(backend, differentiate, error_of, shape):
    # float64 is the composed form's precision test; the kernel computes in float32
    dtype, bound = (np.float64, 1e-12) if backend.name == "composed" else (np.float32, 5e-6)
    check(backend, differentiate, error_of, random_case(**shape, dtype=dtype), bound)


def test_a_sequence_of_one_token_leaves_later_gradients_right(backend, differentiate, error_of):
    """In PyNative mode, MindSpore's softmax over one element spoils the gradients of all later ones."""
    for length in (1, 3):
        check(backend, differentiate, error_of, random_case(1, 1, length, 1, 2, False, False, np.float32), 5e-6)


@pytest.mark.parametrize(("documents", "rotates"), [(False, False), (True, False), (True, True)])
def test_sequences_of_many_blocks_equal_the_reference(backend, differentiate, error_of, documents, rotates):
    check(backend, differentiate, error_of, random_case(1, 2, 150, 2, 5, documents, rotates, np.float32), 5e-6)


def test_large_scores_neither_overflow_nor_lose_the_softmax(backend):
    """Scores of 10,000 would overflow an exponential; the difference of 1 between two keys must remain."""
    query = np.array([[100.0, 0], [100.0, 0]], np.float32)
    key = np.array([[100.0, 0], [100.01, 0]], np.float32)
    value = np.array([[0.0, 1], [1, 0]], np.float32)
    first_keys_BS = Tensor(np.zeros((1, 2), np.int32))

    out = backend("causal_attention").causal_attention(Tensor(query), Tensor(key), Tensor(value), first_keys_BS, 1)

    weight = 1 / (1 + np.exp(-100 * 0.01 / np.sqrt(2)))
    np.testing.assert_allclose(out.asnumpy(), [[0, 1], [weight, 1 - weight]], atol=1e-3)


@pytest.mark.parametrize("offset", [64, 1024, 16384])
def test_gradients_keep_their_digits_with_large_scores(backend, differentiate, error_of, offset):
    """Every score is shifted by the same exact number, which a softmax does not feel."""
    query, key, value, dout, first_keys_BS, _, _ = random_case(5, 1, 32, 1, 8, False, False, np.float32)
    query, key = np.round(4 * query) / 4, np.round(4 * key) / 4  # all scores are exact in float32
    query[:, 0], key[:, 0] = 4, offset  # 4 · offset / √16

    check(backend, differentiate, error_of, (query, key, value, dout, first_keys_BS, 1, ()), 3e-6, (1, 2))


def test_scores_that_are_no_numbers_have_no_result(backend):
    query, key, value, _, first_keys_BS, heads, _ = random_case(3, 1, 40, 1, 2, False, False, np.float32)
    query[30] = np.nan

    inputs = (Tensor(array) for array in (query, key, value, first_keys_BS))
    out = backend("causal_attention").causal_attention(*inputs, heads).asnumpy()

    assert np.isnan(out[30]).all()
    assert np.isfinite(np.delete(out, 30, 0)).all()


def test_the_gradients_of_the_reference_match_finite_differences():
    query, key, value, dout, *others = random_case(5, 1, 5, 1, 2, True, True, np.float64)
    gradients = reference.causal_attention_backward(dout, query, key, value, *others)

    for array, gradient in zip((query, key, value), gradients, strict=True):
        for index in np.ndindex(array.shape):
            kept = array[index]
            losses = []
            for step in (1e-6, -1e-6):
                array[index] = kept + step
                losses.append((reference.causal_attention(query, key, value, *others) * dout).sum())
            array[index] = kept
            assert gradient[index] == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-5, abs=1e-7)


def test_half_precision_has_a_result_with_every_backend(backend):
    query, key, value, _, first_keys_BS, heads, _ = random_case(4, 1, 9, 2, 4, True, False, np.float16)

    out = backend("causal_attention").causal_attention(
        Tensor(query), Tensor(key), Tensor(value), Tensor(first_keys_BS), heads
    )

    exact = [array.astype(np.float64) for array in (query, key, value)]
    assert out.dtype == ms.float16
    assert np.abs(out.asnumpy() - reference.causal_attention(*exact, first_keys_BS, heads)).max() < 1e-2


def test_the_kernel_refuses_keys_and_positions_out_of_range(backend):
    if backend.name != "cpu":
        pytest.skip("only the kernel checks them")
    attention = backend("causal_attention").causal_attention
    query, _, _, _, first_keys_BS, _, rotation = random_case(4, 1, 3, 1, 1, False, True, np.float32)
    rows = [Tensor(query)] * 3
    _, cosine, sine = rotation

    with pytest.raises(RuntimeError, match="the first key of token 0 of a sequence is 1; expected 0 to 0"):
        attention(*rows, Tensor(np.ones((1, 3), np.int32)), 1).asnumpy()
    with pytest.raises(RuntimeError, match="a position is 9; expected 0 to 5"):
        bad = Tensor(np.full((1, 3), 9, np.int32))
        attention(*rows, Tensor(first_keys_BS), 1, (bad, Tensor(cosine), Tensor(sine))).asnumpy()


def test_wrong_arguments_are_refused():
    query, _, _, _, first_keys_BS, _, rotation = random_case(4, 1, 3, 1, 2, False, True, np.float32)
    query = Tensor(query)
    first_keys_BS = Tensor(first_keys_BS)
    rotation = tuple(Tensor(array) for array in rotation)

    with pytest.raises(ValueError, match=r"causal_attention: expected .*and 3 heads"):
        causal_attention(query, query, query, first_keys_BS, 3)
    with pytest.raises(ValueError, match=r"angles \[C, K/2\] for heads of size 2"):
        causal_attention(query, query, query, first_keys_BS, 2, rotation)
    with pytest.raises(TypeError, match="causal_attention: expected"):
        causal_attention(query, query, query, first_keys_BS.astype(ms.int64), 1)
