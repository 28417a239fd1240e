"""From host arrays to the tensors that the compiled functions take, without copies where memory allows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from mindpangu.data.route_plan import RoutePlan
from mindpangu.errors import RoutingError
from mindpangu.experts import ExpertStore
from mindpangu.model.embedding_slots import EmbeddingSlots


def as_tensor(array: np.ndarray) -> Tensor:
    """Zero-copy for a contiguous array (a strided one is copied once, here, and visibly)."""
    return Tensor.from_numpy(np.ascontiguousarray(array))


@dataclass(frozen=True)
class ModelInputs:
    """What a forward pass takes, whoever asks for it: training, held-out loss, generation.

    Attributes:
        slot: embedding slot of the whole batch, or -1 (`EmbeddingSlots.common`).
        rows_BS, tokens_BS, positions_BS: int32 [B, S]; rows of the embedding table, ids local to the slot, positions.
        sample_slots_B: int32 [B]. tables_LDV: int32 [L, D, V].
        slabs: the experts' tensors in the order of `ExpertStore.lookup`, in the compute dtype.
    """

    slot: int
    rows_BS: Tensor
    tokens_BS: Tensor
    positions_BS: Tensor
    sample_slots_B: Tensor
    tables_LDV: Tensor
    slabs: tuple[Tensor, ...]

    @staticmethod
    def build(
        tokens_BS: np.ndarray,
        positions_BS: np.ndarray,
        plan: RoutePlan,
        slots: EmbeddingSlots,
        store: ExpertStore,
        expert_dtype: type[np.floating] = np.float32,
    ) -> "ModelInputs":
        sample_slots_B = slots.of_samples(plan.domain_of_slot, len(tokens_BS))
        return ModelInputs(
            slot=slots.common(plan.domain_of_slot),
            rows_BS=as_tensor(slots.rows(tokens_BS, sample_slots_B)),
            tokens_BS=as_tensor(tokens_BS),
            positions_BS=as_tensor(positions_BS),
            sample_slots_B=as_tensor(sample_slots_B),
            tables_LDV=as_tensor(plan.tables_LDV),
            slabs=tuple(as_tensor(slab.astype(expert_dtype, copy=False)) for slab in store.lookup(plan.domain_of_slot)),
        )


def refuse_invalid_ids(invalid: Tensor) -> None:
    """Raises RoutingError where a compiled function met ids outside its routing tables.

    Plans check ids on the host, so this means that tokens or tables changed between the plan and the device.

    Args:
        invalid: int32 [1], what `rre_dispatch` counted.
    """
    count = int(invalid.asnumpy()[0])
    if count:
        raise RoutingError(
            f"{count} tokens had an id outside the routing tables on the device, though their plan was made: "
            "the batch or the tables were changed in memory; the step's result was discarded"
        )


def group_by_domain(values_B: np.ndarray, domain_of_slot: Sequence[int]) -> dict[int, np.ndarray]:
    """domain id → the samples' values, for slots that own equal, consecutive parts of a batch."""
    parts: dict[int, list[np.ndarray]] = {}
    for domain, part in zip(domain_of_slot, np.split(values_B, len(domain_of_slot)), strict=True):
        parts.setdefault(domain, []).append(part)
    return {domain: np.concatenate(pieces) for domain, pieces in parts.items()}
