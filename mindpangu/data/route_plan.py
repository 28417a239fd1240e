"""Route plans: the routing of a step, computed on the host from token ids before the step runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mindpangu.domains import Domain
from mindpangu.errors import RoutingError
from mindpangu.routing import RoutingTable


@dataclass(frozen=True)
class ExchangePlan:
    """The rows that a rank exchanges with the ranks of its exchange group in one micro-batch.

    Attributes:
        send_LR: int32 [L, R], number of rows sent to each rank.
        receive_LR: int32 [L, R], number of rows received from each rank.
        arriving_LRG: int32 [L, R, G], number of rows received from each rank for each (slot, expert of this rank).
        capacity: number of rows of the receive buffer: the smallest of a few sizes that suffices for every layer and
            rank of the group.
        imbalance: `RoutePlan.imbalance` over the experts of all ranks.
    """

    send_LR: np.ndarray
    receive_LR: np.ndarray
    arriving_LRG: np.ndarray
    capacity: int
    imbalance: float


@dataclass(frozen=True)
class RoutePlan:
    """Routing of one micro-batch or, if ranks share the experts, of the micro-batches whose tokens they exchange.

    Attributes:
        domain_of_slot: domain id of each domain slot.
        slot_of_sample_B: int32 [B], domain slot of each sample. A slot without samples is unused.
        tables_LDV: int32 [L, D, V], the slots' routing tables as the compiled step takes them.
        counts_LDA: int64 [L, D, A], number of tokens of each expert of each slot; 0 in unused slots. If ranks share the
            experts, the tokens of all these ranks for the experts of this rank.
        experts_D: int64 [D], number of experts of each slot's domain, on all ranks.
        exchange: the rows that are sent and received; None if this rank holds all experts.
        replicas: plans of the other ranks that hold the same experts, for their micro-batch with the same index. The
            experts that they activate are updated here as well.
    """

    domain_of_slot: tuple[int, ...]
    slot_of_sample_B: np.ndarray
    tables_LDV: np.ndarray
    counts_LDA: np.ndarray
    experts_D: np.ndarray
    exchange: ExchangePlan | None = None
    replicas: tuple["RoutePlan", ...] = ()

    def imbalance(self) -> float:
        """Returns the load of the busiest expert divided by the mean load, averaged over layers and used slots; 1 for a
        dense model."""
        if len(self.counts_LDA) == 0:
            return 1.0
        if self.exchange is not None:
            return self.exchange.imbalance
        used = np.flatnonzero(self.counts_LDA.any((0, 2)))
        mean_LD = self.counts_LDA[:, used].sum(2) / self.experts_D[used]
        return float((self.counts_LDA[:, used].max(2) / mean_LD).mean())


def plan_routes(
    tokens_BS: np.ndarray,
    domain_of_slot: Sequence[int],
    slot_of_sample_B: np.ndarray,
    domains: Sequence[Domain],
    table: RoutingTable | None,
) -> RoutePlan:
    """Plans a micro-batch.

    Args:
        tokens_BS: int32 token ids.
        domain_of_slot: domain id of each slot.
        slot_of_sample_B: int32, slot of each sample.
        domains: all domains of the model.
        table: the routing table; None for a dense model, which gets an empty plan.

    Raises:
        RoutingError: a token id is outside the routing table, or the slots do not fit the samples.
    """
    num_slots = len(domain_of_slot)
    slots = slot_of_sample_B.tolist()
    if len(slots) != len(tokens_BS) or min(slots) < 0 or max(slots) >= num_slots:
        raise RoutingError(
            f"the slots of {len(tokens_BS)} samples are {slots}; allowed: one per sample, each below {num_slots}"
        )
    group_size = max(domain.num_experts for domain in domains)
    experts_D = np.array([domains[domain].num_experts for domain in domain_of_slot])
    if table is None:
        counts_LDA = np.zeros((0, num_slots, group_size), np.int64)
        tables_LDV = np.zeros((1, 1, 1), np.int32)
        return RoutePlan(tuple(domain_of_slot), slot_of_sample_B, tables_LDV, counts_LDA, experts_D)
    names = [domains[domain].name for domain in domain_of_slot]
    counts_LDA = np.zeros((table.num_layers, num_slots, group_size), np.int64)
    for slot in np.unique(slot_of_sample_B).tolist():
        name = names[slot]
        tokens = tokens_BS[slot_of_sample_B == slot]
        size = table.vocab_size(name)
        if tokens.min() < 0 or tokens.max() >= size:
            bad = tokens[(tokens < 0) | (tokens >= size)][0]
            raise RoutingError(f"token id {bad} of domain {name} is outside its routing table of {size} tokens")
        for layer in range(table.num_layers):
            experts_T = table.array(layer, name)[tokens.reshape(-1)]
            counts_LDA[layer, slot] = np.bincount(experts_T, minlength=group_size)
    return RoutePlan(tuple(domain_of_slot), slot_of_sample_B, table.stacked(names), counts_LDA, experts_D)


def plan_exchange(plans: Sequence[RoutePlan], rank: int) -> RoutePlan:
    """Combines the plans of an exchange group into the plan of one of its ranks.

    Args:
        plans: for each rank of the group, the plan of its own micro-batch; all have the same slots.
        rank: the rank in the group to plan for.
    """
    own = plans[rank]
    size = len(plans)
    if len(own.counts_LDA) == 0:
        return own
    counts_LRDA = np.stack([plan.counts_LDA for plan in plans], 1)  # R: the ranks that tokens come from
    layers, _, slots, experts = counts_LRDA.shape
    local_experts = experts // size
    # splits the experts of a slot into (rank that holds them, expert of this rank)
    counts_LRDRA = counts_LRDA.reshape(layers, size, slots, size, local_experts)
    rows_LRR = counts_LRDRA.sum((2, 4))
    arriving_LRDA = counts_LRDRA[:, :, :, rank]
    exchange = ExchangePlan(
        send_LR=rows_LRR[:, rank].astype(np.int32),
        receive_LR=rows_LRR[:, :, rank].astype(np.int32),
        arriving_LRG=arriving_LRDA.reshape(layers, size, -1).astype(np.int32),
        capacity=capacity_for(int(rows_LRR.sum(1).max()), int(rows_LRR[:, rank].sum(1).max()), size),
        imbalance=replace(own, counts_LDA=counts_LRDA.sum(1)).imbalance(),
    )
    return replace(own, counts_LDA=arriving_LRDA.sum(1), exchange=exchange)


def capacity_for(arriving: int, tokens: int, size: int) -> int:
    """Returns the smallest capacity that holds the arriving rows.

    Args:
        arriving: number of arriving rows.
        tokens: number of rows that each rank sends.
        size: number of ranks in the group.
    """
    return next(capacity for capacity in capacities(tokens, size) if capacity >= arriving)


def capacities(tokens: int, size: int) -> list[int]:
    """Lists the possible capacities, ascending: 1.25, 2, and 4 times the rows of one rank, and the rows of all ranks.

    There are at most four, because the step is compiled once per capacity.
    """
    return sorted({min(-(-tokens * quarters // 4), tokens * size) for quarters in (5, 8, 16)} | {tokens * size})


def own_exchange(
    num_layers: int, num_slots: int, local_experts: int, tokens: int, rank: int, size: int
) -> ExchangePlan:
    """Plans an exchange in which every rank's tokens go to its own first expert; such a plan fits every capacity."""
    rows_LR = np.zeros((num_layers, size), np.int32)
    rows_LR[:, rank] = tokens
    arriving_LRG = np.zeros((num_layers, size, num_slots * local_experts), np.int32)
    arriving_LRG[:, rank, 0] = tokens
    return ExchangePlan(rows_LR, rows_LR, arriving_LRG, tokens, 1.0)
