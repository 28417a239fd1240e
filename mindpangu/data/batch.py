"""A micro-batch: the arrays a model step takes, assembled out of token windows.

Which windows are chosen is up to `loader.py`; positions and the loss mask are defined in `packing.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mindpangu.data.packing import loss_mask, positions


@dataclass(frozen=True)
class Batch:
    """One rank's micro-batch of B samples of S tokens. Arrays are contiguous, so tensors can share their memory.

    Attributes:
        tokens_BS: input ids, int32.
        targets_BS: the id that follows each input, int32.
        positions_BS: position of each input in its sample or, with data.eod_reset, in its document, int32.
        loss_mask_BS: 1.0 where the target counts, float32.
        domain_of_slot: domain id of each of the data.domains_per_step slots.
        slot_of_sample_B: the slot of each sample, ascending, int32. A slot may have any number of samples; one that has
            none is unused, and names a domain of a used slot (`schedule.py`).
        sample_ids_B2: (domain id, index within the domain's split) of each sample, int64; names a bad batch. The index
            of a sample that is only padding is −1.
    """

    tokens_BS: npt.NDArray[np.int32]
    targets_BS: npt.NDArray[np.int32]
    positions_BS: npt.NDArray[np.int32]
    loss_mask_BS: npt.NDArray[np.float32]
    domain_of_slot: tuple[int, ...]
    slot_of_sample_B: npt.NDArray[np.int32]
    sample_ids_B2: npt.NDArray[np.int64]


def equal_parts(batch_size: int, num_slots: int) -> npt.NDArray[np.int32]:
    """slot_of_sample_B of slots that own equal, consecutive parts of a batch, or sizes that differ by one at most."""
    return (np.arange(batch_size) * num_slots // batch_size).astype(np.int32)


def assemble_batch(
    windows: Sequence[npt.NDArray],
    sample_ids_B2: npt.NDArray[np.int64],
    domain_of_slot: tuple[int, ...],
    slot_of_sample_B: npt.NDArray[np.int32],
    seq_length: int,
    pad_id: int,
    eot_id: int,
    eod_reset: bool,
    counted: Sequence[npt.NDArray | None] = (),
) -> Batch:
    """A batch out of windows of S + 1 tokens each. Rows of `sample_ids_B2` without a window are padding.

    Args:
        counted: of each window, which of its tokens count as targets; None, or none at all, for every token.
    """
    block = np.full((len(sample_ids_B2), seq_length + 1), pad_id, np.int32)
    for row, window in zip(block, windows, strict=False):
        row[:] = window
    tokens_BS, targets_BS = block[:, :-1].copy(), block[:, 1:].copy()
    mask_BS = loss_mask(tokens_BS, targets_BS, pad_id, eot_id, eod_reset)
    for row, counts in zip(mask_BS, counted, strict=False):
        if counts is not None:
            row *= counts[1:]
    tokens_BS = _without_padding(tokens_BS, pad_id)
    return Batch(
        tokens_BS=tokens_BS,
        targets_BS=targets_BS,
        positions_BS=positions(tokens_BS, eot_id, eod_reset),
        loss_mask_BS=mask_BS,
        domain_of_slot=domain_of_slot,
        slot_of_sample_B=slot_of_sample_B,
        sample_ids_B2=sample_ids_B2,
    )


def _without_padding(tokens_BS: npt.NDArray[np.int32], pad_id: int) -> npt.NDArray[np.int32]:
    """Rows whose padding at the end gives way to the row's own tokens, again from the first; all padding stays.

    Nothing depends on these inputs: attention is causal, and their targets do not count. But every input goes to an
    expert, and padding would activate one that the text may not need, which the step then would decay, and load it with
    much of the batch.
    """
    lengths_B = (tokens_BS != pad_id).sum(1)
    if lengths_B.min() == tokens_BS.shape[1]:
        return tokens_BS
    again_BS = np.arange(tokens_BS.shape[1]) % np.maximum(lengths_B, 1)[:, None]
    return np.take_along_axis(tokens_BS, again_BS, axis=1)
