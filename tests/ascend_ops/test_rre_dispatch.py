"""rre_dispatch: rows move without a change of bits, and no id leads outside the table."""

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor

from ascend_ops.rre_dispatch import reference, rre_dispatch

VOCAB = 11


def random_case(seed, tokens, slots, experts, hidden, skew, dtype):
    """Returns x, token ids, slot ids, table, and an output gradient. `skew` sends every token to one expert."""
    rng = np.random.default_rng(seed)
    table_DV = rng.integers(0, experts, (slots, VOCAB)).astype(np.int32)
    if skew:
        table_DV[:] = experts - 1
    return (
        rng.standard_normal((tokens, hidden)).astype(dtype),
        rng.integers(0, VOCAB, tokens).astype(np.int32),
        rng.integers(0, slots, tokens).astype(np.int32),
        table_DV,
        rng.standard_normal((tokens, hidden)).astype(dtype),
    )


CASES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "tokens": st.integers(1, 70),
        "slots": st.integers(1, 3),
        "experts": st.integers(1, 9),
        "hidden": st.integers(1, 33),
        "skew": st.booleans(),
        "dtype": st.sampled_from([np.float16, np.float32, np.float64]),
    }
)


@given(shape=CASES)
@settings(max_examples=10, deadline=None)
def test_every_backend_equals_the_reference(backend, differentiate, shape):
    x_TH, token_ids_T, slot_ids_T, table_DV, drows_TH = random_case(**shape)
    dispatch = backend("rre_dispatch").rre_dispatch
    num_experts = shape["experts"]

    def function(*inputs):
        return dispatch(*inputs, num_experts)

    outputs, (dx_TH,) = differentiate(function, (x_TH, token_ids_T, slot_ids_T, table_DV), [0], drows_TH)

    expected = reference.rre_dispatch(x_TH, token_ids_T, slot_ids_T, table_DV, num_experts)
    for actual, expected_output in zip(outputs, (*expected, np.zeros(1, np.int32)), strict=True):
        np.testing.assert_array_equal(actual, expected_output)
        assert actual.dtype == expected_output.dtype
    np.testing.assert_array_equal(dx_TH, reference.rre_dispatch_backward(drows_TH, expected[2]))


BAD_IDS = [
    ("token", VOCAB, f"token id {VOCAB}"),
    ("token", -1, "token id -1"),
    ("slot", 2, "slot id 2"),
    ("slot", -3, "slot id -3"),
    ("table", 4, "expert 4"),
]


def case_with_bad_id(where, value):
    case = random_case(0, 20, 2, 4, 3, False, np.float32)[:4]
    if where == "table":
        case[3][case[2][7], case[1][7]] = value
    else:
        case[{"token": 1, "slot": 2}[where]][7] = value
    return case


@pytest.mark.parametrize(("where", "value", "message"), BAD_IDS)
def test_an_eager_call_refuses_bad_ids(where, value, message):
    with pytest.raises(ValueError, match=message):
        rre_dispatch(*(Tensor(array) for array in case_with_bad_id(where, value)), 4)


@pytest.mark.parametrize(("where", "value", "message"), BAD_IDS)
def test_a_compiled_call_refuses_bad_ids_or_counts_them(backend, where, value, message):
    case = case_with_bad_id(where, value)
    implementation = backend("rre_dispatch").rre_dispatch

    @ms.jit
    def dispatch(*inputs):
        return implementation(*inputs, 4)

    if backend.name == "cpu":
        with pytest.raises(RuntimeError, match=message):
            dispatch(*(Tensor(array) for array in case))[0].asnumpy()
        return
    outputs = dispatch(*(Tensor(array) for array in case))
    rows_TH, counts_G, positions_T, invalid = (output.asnumpy() for output in outputs)
    bad_entry = case[3][case[2][7] % 2, case[1][7] % VOCAB]

    affected = (case[1] == case[1][7]) & (case[2] == case[2][7]) if where == "table" else np.arange(20) == 7

    assert invalid[0] == affected.sum() >= 1, bad_entry
    assert sorted(positions_T) == list(range(20))
    assert counts_G.sum() == 20
    np.testing.assert_array_equal(rows_TH[positions_T], case[0])


def test_wrong_arguments_are_refused_when_the_operator_is_built():
    x_TH = Tensor(np.zeros((4, 2), np.float32))
    ids = Tensor(np.zeros(4, np.int32))
    table = Tensor(np.zeros((1, 5), np.int32))

    with pytest.raises(ValueError, match=r"rre_dispatch: expected .*got \(4, 2\), \(3,\)"):
        rre_dispatch(x_TH, ids[:3], ids, table, 1)
    with pytest.raises(TypeError, match=r"rre_dispatch: expected .*Int64"):
        rre_dispatch(x_TH, ids.astype(ms.int64), ids, table, 1)
    with pytest.raises(ValueError, match="num_experts is 0"):
        rre_dispatch(x_TH, ids, ids, table, 0)

    @ms.jit
    def compiled(x_TH, ids, table):
        return rre_dispatch(x_TH, ids, ids, table, 1)

    with pytest.raises(ValueError, match="rre_dispatch: expected"):
        compiled(x_TH[:, 0], ids, table)


def test_the_reference_refuses_ids_outside_the_table():
    with pytest.raises(ValueError, match="token id 11 is outside the table of 11"):
        reference.rre_dispatch(*case_with_bad_id("token", 11), 4)
