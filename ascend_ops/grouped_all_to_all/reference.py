"""NumPy reference of grouped_all_to_all, forward and backward: all ranks of a group at once."""

from collections.abc import Sequence

import numpy as np

from ascend_ops.rre_dispatch.reference import send_order


def grouped_all_to_all(
    rows_of_rank: Sequence[np.ndarray], send_counts_RR: np.ndarray, capacity: int | Sequence[int]
) -> list[np.ndarray]:
    """Returns the rows that every rank receives.

    Args:
        rows_of_rank: the rows [Q, H] of each rank, sorted by destination; Q may differ.
        send_counts_RR: [R, R], number of rows from rank (first axis) to rank.
        capacity: number of rows of each result, one for all ranks or one per rank.
    """
    size = len(rows_of_rank)
    capacities = [capacity] * size if isinstance(capacity, int) else capacity
    send_counts_RR = np.asarray(send_counts_RR)
    starts_RR = np.cumsum(send_counts_RR, 1) - send_counts_RR
    received = []
    for rank in range(size):
        rows_of_source = [
            rows_of_rank[source][starts_RR[source, rank] :][: send_counts_RR[source, rank]] for source in range(size)
        ]
        rows = np.concatenate(rows_of_source)
        out_CH = np.zeros((capacities[rank], rows.shape[1]), rows.dtype)
        out_CH[: len(rows)] = rows
        received.append(out_CH)
    return received


def grouped_all_to_all_backward(
    drows_of_rank: Sequence[np.ndarray], send_counts_RR: np.ndarray, sizes: Sequence[int]
) -> list[np.ndarray]:
    """Returns the gradients of the sizes[rank] rows of every rank, zeros for rows that were not sent."""
    return grouped_all_to_all(drows_of_rank, np.transpose(send_counts_RR), sizes)


def dispatch_all_to_all(
    x_of_rank: Sequence[np.ndarray],
    token_ids_of_rank: Sequence[np.ndarray],
    slot_ids_of_rank: Sequence[np.ndarray],
    table_DV: np.ndarray,
    num_experts: int,
    capacity: int,
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Returns rows_CH, counts_RG and positions_T of every rank; counts_RG.sum(1) are its send counts."""
    counts = []
    positions = []
    sorted_rows = []
    for x_TH, token_ids_T, slot_ids_T in zip(x_of_rank, token_ids_of_rank, slot_ids_of_rank, strict=True):
        counts_RG, positions_T = send_order(token_ids_T, slot_ids_T, table_DV, num_experts, len(x_of_rank))
        rows_TH = np.empty_like(x_TH)
        rows_TH[positions_T] = x_TH
        counts.append(counts_RG)
        positions.append(positions_T)
        sorted_rows.append(rows_TH)
    send_counts_RR = np.stack([counts_RG.sum(1) for counts_RG in counts])
    return grouped_all_to_all(sorted_rows, send_counts_RR, capacity), counts, positions


def dispatch_all_to_all_backward(
    drows_of_rank: Sequence[np.ndarray], counts_of_rank: Sequence[np.ndarray], positions_of_rank: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Returns the gradients with respect to every rank's x_TH."""
    send_counts_RR = np.stack([counts_RG.sum(1) for counts_RG in counts_of_rank])
    sizes = [len(positions_T) for positions_T in positions_of_rank]
    returned = grouped_all_to_all_backward(drows_of_rank, send_counts_RR, sizes)
    return [rows_TH[positions_T] for rows_TH, positions_T in zip(returned, positions_of_rank, strict=True)]
