"""A micro-batch: the input arrays of a model step, assembled from token windows.

`loader.py` chooses the windows; `packing.py` defines positions and the loss mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mindpangu.data.packing import loss_mask, positions


@dataclass(frozen=True)
class Batch:
    """A micro-batch of one rank. The arrays are contiguous, so tensors can share their memory.

    Attributes:
        tokens_BS: int32, input ids.
        targets_BS: int32, the id that follows each input.
        positions_BS: int32, position of each input in its sample or, with data.eod_reset, in its document.
        loss_mask_BS: float32, 1.0 where the target counts.
        domain_of_slot: domain id of each of the data.domains_per_step slots.
        slot_of_sample_B: int32, slot of each sample, ascending. A slot may have any number of samples; a slot without
            samples is unused and repeats the domain of a used slot (`schedule.py`).
        sample_ids_B2: int64, (domain id, index in the domain's split) of each sample, to report a bad batch. The index
            is −1 for a sample that is only padding.
    """

    tokens_BS: npt.NDArray[np.int32]
    targets_BS: npt.NDArray[np.int32]
    positions_BS: npt.NDArray[np.int32]
    loss_mask_BS: npt.NDArray[np.float32]
    domain_of_slot: tuple[int, ...]
    slot_of_sample_B: npt.NDArray[np.int32]
    sample_ids_B2: npt.NDArray[np.int64]


def equal_parts(batch_size: int, num_slots: int) -> npt.NDArray[np.int32]:
    """Divides a batch into consecutive slots of equal size, give or take one sample; returns slot_of_sample_B."""
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
    """Assembles a batch from windows of S + 1 tokens each. Rows of `sample_ids_B2` without a window are padding.

    Args:
        counted: for each window, the mask of tokens that count as targets, or None if all count. Without masks, all
            tokens of all windows count.
    """
    block = np.full((len(sample_ids_B2), seq_length + 1), pad_id, np.int32)
    for row, window in zip(block, windows, strict=False):
        row[:] = window
    tokens_BS = block[:, :-1].copy()
    targets_BS = block[:, 1:].copy()
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
    """Replaces the padding at the end of each row with the row's own tokens, starting from the first. Leaves rows that
    consist only of padding.

    Results do not depend on these inputs, because attention is causal and their targets do not count. But every input
    goes to an expert. Padding could activate an expert that the text does not need, which the step would then decay,
    and would send much of the batch to it.
    """
    lengths_B = (tokens_BS != pad_id).sum(1)
    if lengths_B.min() == tokens_BS.shape[1]:
        return tokens_BS
    again_BS = np.arange(tokens_BS.shape[1]) % np.maximum(lengths_B, 1)[:, None]
    return np.take_along_axis(tokens_BS, again_BS, axis=1)
