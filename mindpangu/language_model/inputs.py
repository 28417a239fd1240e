"""Turns host arrays into the tensors of the compiled functions, without a copy where possible."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from mindpangu.data.route_plan import RoutePlan
from mindpangu.errors import RoutingError
from mindpangu.model.vocabularies import Vocabularies


def as_tensor(array: np.ndarray) -> Tensor:
    """Wraps an array in a tensor: without a copy if the array is contiguous, otherwise after copying it."""
    return Tensor.from_numpy(np.ascontiguousarray(array))


@dataclass(frozen=True)
class ModelInputs:
    """Inputs of a forward pass, without the experts, for training, held-out loss, and generation.

    Attributes:
        vocabulary: index of the vocabulary that all samples share, or -1 if they differ (`Vocabularies.common`).
        rows_BS: int32 [B, S], rows of the embedding table.
        tokens_BS: int32 [B, S], token ids in their vocabulary.
        positions_BS: int32 [B, S].
        vocabulary_of_sample_B: int32 [B].
        domain_slots_B: int32 [B], domain slot of each sample.
        tables_LDV: int32 [L, D, V].
        capacity: the capacity of the `ExchangePlan`; 0 if nothing is exchanged.
        exchange: its send_LR, receive_LR, and arriving_LRG; empty if nothing is exchanged.
    """

    vocabulary: int
    rows_BS: Tensor
    tokens_BS: Tensor
    positions_BS: Tensor
    vocabulary_of_sample_B: Tensor
    domain_slots_B: Tensor
    tables_LDV: Tensor
    capacity: int = 0
    exchange: tuple[Tensor, ...] = ()

    @staticmethod
    def build(
        tokens_BS: np.ndarray, positions_BS: np.ndarray, plan: RoutePlan, vocabularies: Vocabularies
    ) -> "ModelInputs":
        vocabulary_of_sample_B = vocabularies.of_samples(plan.domain_of_slot, plan.slot_of_sample_B)
        capacity = 0
        exchange: tuple[Tensor, ...] = ()
        planned = plan.exchange
        if planned is not None:
            capacity = planned.capacity
            exchange = tuple(map(as_tensor, (planned.send_LR, planned.receive_LR, planned.arriving_LRG)))
        return ModelInputs(
            vocabulary=vocabularies.common(vocabulary_of_sample_B),
            rows_BS=as_tensor(vocabularies.rows(tokens_BS, vocabulary_of_sample_B)),
            tokens_BS=as_tensor(tokens_BS),
            positions_BS=as_tensor(positions_BS),
            vocabulary_of_sample_B=as_tensor(vocabulary_of_sample_B),
            domain_slots_B=as_tensor(plan.slot_of_sample_B),
            tables_LDV=as_tensor(plan.tables_LDV),
            capacity=capacity,
            exchange=exchange,
        )


def refuse_invalid_ids(invalid: np.ndarray) -> None:
    """Raises RoutingError if a compiled function found ids outside its routing tables.

    Ids are checked on the host during planning, so such an id means that tokens or tables have changed since.

    Args:
        invalid: int32 [1], the count of `rre_dispatch`.
    """
    count = int(invalid[0])
    if count:
        raise RoutingError(
            f"{count} tokens had an id outside the routing tables on the device, although their plan was valid: "
            "the batch or the tables were changed in memory; the step's result was discarded"
        )


def group_by_domain(
    values_B: np.ndarray, domain_of_slot: Sequence[int], slot_of_sample_B: np.ndarray
) -> dict[int, np.ndarray]:
    """Groups one value per sample by domain id. Domains without samples are left out."""
    domains_B = np.array(domain_of_slot)[slot_of_sample_B]
    return {domain: values_B[domains_B == domain] for domain in np.unique(domains_B).tolist()}
