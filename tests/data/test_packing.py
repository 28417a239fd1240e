"""Packing: a stream is cut into samples, which get positions and a loss mask."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu.data.packing import loss_mask, num_samples, positions, sample_window

PAD = 1
EOT = 2

batches = st.tuples(st.integers(1, 4), st.integers(2, 12)).flatmap(
    lambda shape: st.lists(
        st.integers(0, 5), min_size=shape[0] * (shape[1] + 1), max_size=shape[0] * (shape[1] + 1)
    ).map(lambda ids: np.array(ids, np.int32).reshape(shape[0], shape[1] + 1))
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100), st.integers(2, 9))
def test_every_token_is_a_target_once_and_only_the_tail_is_dropped(num_tokens, seq_length):
    stream = np.arange(num_tokens)

    count = num_samples(num_tokens, seq_length)
    windows = [sample_window(stream, index, seq_length) for index in range(count)]

    assert all(len(window) == seq_length + 1 for window in windows)
    targets = np.concatenate([window[1:] for window in windows] or [np.empty(0)])
    assert targets.tolist() == list(range(1, 1 + count * seq_length))
    assert num_tokens - 1 - count * seq_length < seq_length


@settings(max_examples=80, deadline=None)
@given(batches, st.booleans())
def test_positions_and_mask_follow_their_definition_token_by_token(block, eod_reset):
    inputs = block[:, :-1]
    targets = block[:, 1:]
    expected_positions = np.empty(inputs.shape)
    expected_mask = np.empty(inputs.shape)
    for b, row in enumerate(inputs):
        position = 0
        for s, token in enumerate(row):
            expected_positions[b, s] = position
            position = 0 if eod_reset and token == EOT else position + 1
            expected_mask[b, s] = targets[b, s] != PAD and not (eod_reset and token == EOT)

    found_positions = positions(inputs, EOT, eod_reset)
    found_mask = loss_mask(inputs, targets, PAD, EOT, eod_reset)

    np.testing.assert_array_equal(found_positions, expected_positions)
    np.testing.assert_array_equal(found_mask, expected_mask)
    assert (found_positions.dtype, found_mask.dtype) == (np.int32, np.float32)
    assert found_positions.flags.c_contiguous
    assert found_mask.flags.c_contiguous


def test_positions_and_mask_of_a_written_example():
    inputs = np.array([[7, EOT, EOT, 8, 9, PAD]], np.int32)
    targets = np.array([[EOT, EOT, 8, 9, PAD, PAD]], np.int32)

    assert positions(inputs, EOT, True).tolist() == [[0, 1, 0, 0, 1, 2]]
    assert loss_mask(inputs, targets, PAD, EOT, True).tolist() == [[1, 0, 0, 1, 0, 0]]
    # Without the reset <eot> is an ordinary token: it is learned, and so is the token after it.
    assert positions(inputs, EOT, False).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert loss_mask(inputs, targets, PAD, EOT, False).tolist() == [[1, 1, 1, 1, 0, 0]]
