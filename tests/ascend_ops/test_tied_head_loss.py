"""tied_head_loss: losses of several vocabularies and their gradients, with every backend."""

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor

from ascend_ops.tied_head_loss import MIXED, reference, token_losses

CASES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "batch": st.integers(1, 4),
        "length": st.integers(1, 12),
        "hidden": st.integers(1, 9),
        "sizes": st.lists(st.integers(1, 30), min_size=1, max_size=3),
    }
)


def random_case(seed, batch, length, hidden, sizes, dtype, vocabularies=None):
    """Returns x, table, targets, vocabulary of each sample, weights and the starts."""
    rng = np.random.default_rng(seed)
    starts = tuple(int(start) for start in np.cumsum([0, *sizes]))
    if vocabularies is None:
        vocabularies = rng.integers(0, len(sizes), batch)
    vocabulary_B = np.array(vocabularies, np.int32)
    targets_BS = rng.integers(0, np.array(sizes)[vocabulary_B][:, None], (batch, length)).astype(np.int32)
    x_TH = rng.standard_normal((batch * length, hidden)).astype(dtype)
    table_VH = rng.standard_normal((starts[-1], hidden)).astype(dtype)
    weights_BS = (rng.random((batch, length)) * (rng.random((batch, length)) < 0.8)).astype(dtype)
    return x_TH, table_VH, targets_BS, vocabulary_B, weights_BS, starts


def check(backend, differentiate, error_of, case, bound, vocabulary=MIXED):
    module = backend("tied_head_loss")
    *arrays, starts = case

    def function(*inputs):
        total, losses_BS = module.weighted_losses(*inputs, starts, vocabulary)
        plain_BS = module.token_losses(*inputs[:-1], starts, vocabulary)
        # either form gives one half of the gradients
        return total + (plain_BS * inputs[-1]).sum(), losses_BS, plain_BS

    scale = np.array(2.5, case[0].dtype)
    (total, losses_BS, plain_BS), gradients = differentiate(function, arrays, (0, 1), scale)

    x_TH, table_VH, targets_BS, vocabulary_B, weights_BS = arrays
    exact = [x_TH.astype(np.float64), table_VH.astype(np.float64), targets_BS, vocabulary_B]
    expected_BS = reference.token_losses(*exact, starts)
    weighted_BS = expected_BS * weights_BS
    scale = max(np.abs(expected_BS).max(), 1)
    np.testing.assert_allclose(plain_BS, expected_BS, rtol=0, atol=bound * scale)
    np.testing.assert_allclose(losses_BS, weighted_BS, rtol=0, atol=bound * scale)
    assert total == pytest.approx(2 * weighted_BS.sum(), rel=10 * bound, abs=bound)
    expected = reference.weighted_losses_backward(*exact, weights_BS.astype(np.float64), starts)
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert error_of(gradient, 5 * wanted) < bound
        np.testing.assert_array_equal(gradient[~wanted.any(1)], 0)  # rows of vocabularies that no sample has


@given(shape=CASES)
@settings(max_examples=5, deadline=None)
def test_every_backend_equals_the_reference(backend, differentiate, error_of, shape):
    check(backend, differentiate, error_of, random_case(**shape, dtype=np.float32), 5e-6)


@pytest.mark.parametrize(("vocabularies", "common"), [([0, 0, 0], 0), ([1, 1, 1], 1), ([0, 1, 0], MIXED)])
def test_many_chunks_and_tiles_equal_the_reference(backend, differentiate, error_of, vocabularies, common):
    """More tokens than a chunk, and more rows of the table than a tile, of which only some are used."""
    case = random_case(1, 3, 400, 12, [1500, 1100], np.float32, vocabularies)
    check(backend, differentiate, error_of, case, 5e-6, common)


def test_large_scores_do_not_overflow(backend):
    x_TH = Tensor(np.array([[1000.0]], np.float32))
    table_VH = Tensor(np.array([[1.0], [0.999], [-1.0]], np.float32))
    targets_BS, vocabulary_B = (Tensor(np.array(array, np.int32)) for array in ([[1]], [0]))

    losses_BS = backend("tied_head_loss").token_losses(x_TH, table_VH, targets_BS, vocabulary_B, (0, 3))

    assert losses_BS.asnumpy() == pytest.approx(np.log(1 + np.e), abs=1e-3)


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_losses_keep_their_digits_with_large_scores(backend, offset):
    """Every score is shifted by the same exact number, which a softmax does not feel."""
    x_TH, table_VH, *others, _, starts = random_case(6, 1, 8, 4, [30], np.float32)
    x_TH, table_VH = np.round(4 * x_TH) / 4, np.round(4 * table_VH) / 4
    x_TH[:, 0], table_VH[:, 0] = 1, offset

    losses_BS = backend("tied_head_loss").token_losses(*(Tensor(array) for array in (x_TH, table_VH, *others)), starts)

    exact_BS = reference.token_losses(x_TH.astype(np.float64), table_VH.astype(np.float64), *others, starts)
    np.testing.assert_allclose(losses_BS.asnumpy(), exact_BS, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("negative", [False, True])
def test_scores_that_are_no_numbers_have_no_loss(backend, negative):
    x_TH, table_VH, *others, _, starts = random_case(3, 1, 3, 4, [40], np.float32)
    x_TH[1, 2] = -np.float32(np.nan) if negative else np.nan

    losses_BS = backend("tied_head_loss").token_losses(*(Tensor(array) for array in (x_TH, table_VH, *others)), starts)

    np.testing.assert_array_equal(np.isnan(losses_BS.asnumpy()), [[False, True, False]])


def test_half_precision_has_losses_in_float32_with_every_backend(backend):
    x_TH, table_VH, *others, _, starts = random_case(4, 2, 5, 4, [7], np.float16)

    losses_BS = backend("tied_head_loss").token_losses(*(Tensor(array) for array in (x_TH, table_VH, *others)), starts)

    expected_BS = reference.token_losses(x_TH.astype(np.float64), table_VH.astype(np.float64), *others, starts)
    assert losses_BS.dtype == ms.float32
    np.testing.assert_allclose(losses_BS.asnumpy(), expected_BS, atol=1e-2)


@pytest.mark.parametrize(
    ("target", "vocabulary", "message"),
    [
        (5, 0, "target 5 of token 1 is outside a vocabulary of 5"),
        (-1, 0, "target -1 of token 1 is outside"),
        (3, 1, "target 3 of token 1 is outside a vocabulary of 3"),
        (0, 2, "vocabulary 2 is outside 2 vocabularies"),
    ],
)
def test_the_kernel_refuses_targets_that_do_not_exist(backend, target, vocabulary, message):
    if backend.name != "cpu":
        pytest.skip("only the kernel checks them")
    *arrays, _, starts = random_case(4, 1, 2, 4, [5, 3], np.float32, [0])
    arrays[2][:] = [[0, target]]
    arrays[3][:] = vocabulary

    with pytest.raises(RuntimeError, match=message):
        backend("tied_head_loss").token_losses(*(Tensor(array) for array in arrays), starts).asnumpy()


def test_wrong_arguments_are_refused():
    *arrays, _, starts = random_case(4, 2, 2, 4, [5, 3], np.float32)
    x_TH, table_VH, targets_BS, vocabulary_B = (Tensor(array) for array in arrays)

    with pytest.raises(ValueError, match="tied_head_loss: expected"):
        token_losses(x_TH, table_VH[:, :2], targets_BS, vocabulary_B, starts)
    with pytest.raises(ValueError, match=r"vocabulary_of_sample_B \[B\]"):
        token_losses(x_TH, table_VH, targets_BS, vocabulary_B[:1], starts)
    with pytest.raises(ValueError, match=r"starts are \(0, 5\); expected 0, rising, up to the 8 rows"):
        token_losses(x_TH, table_VH, targets_BS, vocabulary_B, (0, 5))
    with pytest.raises(ValueError, match="vocabulary is 2; expected -1 to 1"):
        token_losses(x_TH, table_VH, targets_BS, vocabulary_B, starts, 2)
    with pytest.raises(TypeError, match="tied_head_loss: expected"):
        token_losses(x_TH, table_VH, targets_BS.astype(ms.int64), vocabulary_B, starts)
