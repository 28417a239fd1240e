"""The experts that a step needs, and the cost of moving and updating them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mindpangu.data.route_plan import RoutePlan
from mindpangu.experts.store import ExpertStore


@dataclass
class ExpertTraffic:
    """Costs of a step's experts.

    Attributes:
        activated: number of experts that received a token.
        bytes_to_device, bytes_to_host: bytes moved for this step.
        lookup_s: seconds spent copying the step's experts to the device.
        update_s: seconds spent on Adam for the experts while this step ran (with overlap, Adam of the previous step).
        wait_s: seconds that the training thread waited for experts or their gradients.
    """

    activated: int = 0
    bytes_to_device: int = 0
    bytes_to_host: int = 0
    lookup_s: float = 0.0
    update_s: float = 0.0
    wait_s: float = 0.0


def activated_experts(plans: Sequence[RoutePlan], store: ExpertStore) -> np.ndarray:
    """Returns bool [L, M, A]: the experts that these micro-batches activate on any rank."""
    activated_LMA = np.zeros(store.step_counts.shape, bool)
    for plan in plans:
        for replica in (plan, *plan.replicas):
            for slot, domain in enumerate(replica.domain_of_slot):
                activated_LMA[:, domain] |= replica.counts_LDA[:, slot] > 0
    return activated_LMA


def slab_gradients(
    plan: RoutePlan, gradients: Sequence[np.ndarray]
) -> Iterator[tuple[int, int, np.ndarray, Sequence[np.ndarray]]]:
    """Yields (layer, domain id, bool [A] experts with tokens, the slab's gradients) for each used slot and layer."""
    num_slots = len(plan.domain_of_slot)
    size = len(gradients) // (len(plan.counts_LDA) * num_slots)
    for layer, counts_DA in enumerate(plan.counts_LDA):
        for slot, domain in enumerate(plan.domain_of_slot):
            experts_A = counts_DA[slot] > 0
            if experts_A.any():
                start = (layer * num_slots + slot) * size
                yield layer, domain, experts_A, gradients[start : start + size]
