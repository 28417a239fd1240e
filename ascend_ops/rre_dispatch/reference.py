"""NumPy reference of rre_dispatch, forward and backward."""

import numpy as np


def check_ids(token_ids_T: np.ndarray, slot_ids_T: np.ndarray, table_DV: np.ndarray, num_experts: int) -> None:
    """Raises ValueError for a token or slot id outside the table, or a table entry that is not an expert."""
    num_slots, vocab_size = table_DV.shape
    for name, ids, bound in (
        ("token id", token_ids_T, vocab_size),
        ("slot id", slot_ids_T, num_slots),
        ("expert", table_DV, num_experts),
    ):
        if ids.size and (ids.min() < 0 or ids.max() >= bound):
            bad = ids[(ids < 0) | (ids >= bound)].flat[0]
            if name == "expert":
                raise ValueError(f"rre_dispatch: the table names expert {bad} of {bound}")
            raise ValueError(f"rre_dispatch: {name} {bad} is outside the table of {bound}")


def rre_dispatch(
    x_TH: np.ndarray, token_ids_T: np.ndarray, slot_ids_T: np.ndarray, table_DV: np.ndarray, num_experts: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """See `ascend_ops.rre_dispatch`; takes any float dtype. Returns rows, counts, positions. Raises the errors of
    `check_ids`."""
    check_ids(token_ids_T, slot_ids_T, table_DV, num_experts)
    num_slots = len(table_DV)
    experts_T = table_DV[slot_ids_T, token_ids_T].astype(np.int64)
    groups_T = slot_ids_T.astype(np.int64) * num_experts + experts_T
    order_T = np.argsort(groups_T, kind="stable")
    positions_T = np.empty(len(order_T), np.int32)
    positions_T[order_T] = np.arange(len(order_T))
    counts_G = np.bincount(groups_T, minlength=num_slots * num_experts).astype(np.int32)
    return x_TH[order_T], counts_G, positions_T


def rre_dispatch_backward(drows_TH: np.ndarray, positions_T: np.ndarray) -> np.ndarray:
    """Returns the gradient with respect to x_TH: the rows return to token order."""
    return drows_TH[positions_T]


def send_order(
    token_ids_T: np.ndarray, slot_ids_T: np.ndarray, table_DV: np.ndarray, num_experts: int, num_ranks: int
) -> tuple[np.ndarray, np.ndarray]:
    """Groups tokens by (rank, slot, expert of the rank), the order in which `dispatch_all_to_all` sends their rows.

    Returns:
        counts_RG: int32 [R, D·E/R], rows of each group.
        positions_T: int32 [T], the position of each token's row.

    Raises:
        ValueError: as `check_ids`.
    """
    check_ids(token_ids_T, slot_ids_T, table_DV, num_experts)
    local = num_experts // num_ranks
    num_slots = len(table_DV)
    experts_T = table_DV[slot_ids_T, token_ids_T].astype(np.int64)
    groups_T = (experts_T // local * num_slots + slot_ids_T) * local + experts_T % local
    order_T = np.argsort(groups_T, kind="stable")
    positions_T = np.empty(len(order_T), np.int32)
    positions_T[order_T] = np.arange(len(order_T))
    counts_G = np.bincount(groups_T, minlength=num_slots * num_experts).astype(np.int32)
    return counts_G.reshape(num_ranks, -1), positions_T
