"""Batches: windows become inputs, targets, and masks; inputs have no padding."""

import numpy as np
import pytest

from mindpangu.data.batch import assemble_batch

PAD = 1
EOT = 2


def assemble(windows, num_samples=None, counted=(), eod_reset=False):
    """Assembles a batch of one slot."""
    count = num_samples or len(windows)
    ids = np.zeros((count, 2), np.int64)
    slots = np.zeros(count, np.int32)
    seq_length = len(windows[0]) - 1
    masks = [mask and np.array(mask, np.uint8) for mask in counted]
    return assemble_batch(
        [np.array(each) for each in windows], ids, (0,), slots, seq_length, PAD, EOT, eod_reset, masks
    )


def test_inputs_are_all_tokens_but_the_last_and_targets_all_but_the_first():
    batch = assemble([[5, 6, 7, 8], [9, 8, 7, 6]])

    assert batch.tokens_BS.tolist() == [[5, 6, 7], [9, 8, 7]]
    assert batch.targets_BS.tolist() == [[6, 7, 8], [8, 7, 6]]
    assert batch.positions_BS.tolist() == [[0, 1, 2]] * 2
    assert batch.loss_mask_BS.tolist() == [[1, 1, 1]] * 2


def test_each_row_repeats_its_own_tokens_in_place_of_padding():
    windows = [[5, 6, 7, 8, 9], [5, 6, PAD, PAD, PAD], [7, PAD, PAD, PAD, PAD], [5, 6, 7, PAD, PAD]]

    batch = assemble(windows, num_samples=5)

    assert batch.tokens_BS.tolist() == [[5, 6, 7, 8], [5, 6, 5, 6], [7, 7, 7, 7], [5, 6, 7, 5], [PAD] * 4]
    assert batch.targets_BS.tolist() == [[6, 7, 8, 9], [6, PAD, PAD, PAD], [PAD] * 4, [6, 7, PAD, PAD], [PAD] * 4]
    assert batch.loss_mask_BS.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0], [0] * 4, [1, 1, 0, 0], [0] * 4]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_padding_is_replaced_in_batches_of_any_shape(length):
    window = [5, 6, 7][:length] + [PAD] * (5 - length)

    batch = assemble([window] * 2)

    assert batch.tokens_BS.tolist() == [([5, 6, 7][:length] * 4)[:4]] * 2


def test_positions_restart_after_repeated_tokens_too():
    batch = assemble([[5, EOT, PAD, PAD, PAD]], eod_reset=True)

    assert batch.tokens_BS.tolist() == [[5, EOT, 5, EOT]]
    assert batch.positions_BS.tolist() == [[0, 1, 0, 1]]


def test_a_mask_names_the_tokens_that_count_as_targets():
    windows = [[5, 6, 7, 8], [5, 6, 7, 8], [5, 6, 7, PAD]]

    batch = assemble(windows, num_samples=4, counted=[[1, 0, 0, 1], None, [1, 1, 0, 1]])

    assert batch.loss_mask_BS.tolist() == [[0, 0, 1], [1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert batch.loss_mask_BS.dtype == np.float32
