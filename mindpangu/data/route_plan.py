"""RoutePlan: what a step's routing will be, computed on the host from the token ids alone, before the step runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindpangu.domains import Domain
from mindpangu.errors import RoutingError
from mindpangu.routing import RoutingTable


@dataclass(frozen=True)
class RoutePlan:
    """Routing of one micro-batch.

    Attributes:
        domain_of_slot: the domain id in each domain slot.
        tables_LDV: int32 [L, D, V], the slots' routing tables as the compiled step takes them.
        counts_LDA: int64 [L, D, A], tokens of each expert of each slot; A = the largest group.
        experts_D: int64 [D], experts that each slot's domain really has.
    """

    domain_of_slot: tuple[int, ...]
    tables_LDV: np.ndarray
    counts_LDA: np.ndarray
    experts_D: np.ndarray

    def imbalance(self) -> float:
        """Largest over mean number of tokens of an expert, averaged over layers and slots; 1 for a dense model."""
        if len(self.counts_LDA) == 0:
            return 1.0
        mean_LD = self.counts_LDA.sum(2) / self.experts_D
        return float((self.counts_LDA.max(2) / mean_LD).mean())


def plan_routes(
    tokens_BS: np.ndarray, domain_of_slot: Sequence[int], domains: Sequence[Domain], table: RoutingTable | None
) -> RoutePlan:
    """Plans a micro-batch.

    Args:
        tokens_BS: int32 token ids; domain slots own equal, consecutive parts of the samples.
        domain_of_slot: domain id of each slot.
        table: the routing table; None for a dense model, which gets an empty plan.

    Raises:
        RoutingError: a token id that the table does not know.
    """
    group_size = max(domain.num_experts for domain in domains)
    experts_D = np.array([domains[domain].num_experts for domain in domain_of_slot])
    if table is None:
        counts_LDA = np.zeros((0, len(domain_of_slot), group_size), np.int64)
        return RoutePlan(tuple(domain_of_slot), np.zeros((1, 1, 1), np.int32), counts_LDA, experts_D)
    names = [domains[domain].name for domain in domain_of_slot]
    counts_LDA = np.empty((table.num_layers, len(names), group_size), np.int64)
    for slot, (name, tokens) in enumerate(zip(names, np.split(tokens_BS, len(names)), strict=True)):
        size = table.vocab_size(name)
        if tokens.min() < 0 or tokens.max() >= size:
            bad = tokens[(tokens < 0) | (tokens >= size)][0]
            raise RoutingError(f"token id {bad} of domain {name} is outside its routing table of {size} tokens")
        for layer in range(table.num_layers):
            experts_T = table.array(layer, name)[tokens.reshape(-1)]
            counts_LDA[layer, slot] = np.bincount(experts_T, minlength=group_size)
    return RoutePlan(tuple(domain_of_slot), table.stacked(names), counts_LDA, experts_D)
