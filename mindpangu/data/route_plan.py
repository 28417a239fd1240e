"""RoutePlan: what a step's routing will be, computed on the host from the token ids alone, before the step runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mindpangu.domains import Domain
from mindpangu.errors import RoutingError
from mindpangu.routing import RoutingTable


@dataclass(frozen=True)
class ExchangePlan:
    """What the ranks of an exchange group send each other in one micro-batch, as one of them sees it.

    Attributes:
        send_LR, receive_LR: int32 [L, R], rows to and from each rank.
        arriving_LRG: int32 [L, R, G], rows from each rank for each (slot, expert of this rank).
        capacity: rows that may arrive in any layer on any of these ranks; the smallest of a few sizes that is enough.
        imbalance: of the experts of all ranks; see `RoutePlan.imbalance`.
    """

    send_LR: np.ndarray
    receive_LR: np.ndarray
    arriving_LRG: np.ndarray
    capacity: int
    imbalance: float


@dataclass(frozen=True)
class RoutePlan:
    """Routing of one micro-batch. With experts on several ranks: of the micro-batches that these train on together.

    Attributes:
        domain_of_slot: the domain id in each domain slot.
        slot_of_sample_B: int32 [B], the domain slot of each sample; a slot that is not named here is unused.
        tables_LDV: int32 [L, D, V], the slots' routing tables as the compiled step takes them.
        counts_LDA: int64 [L, D, A], tokens of each expert of each slot; A = the largest group. An unused slot has none.
            With experts on several ranks: tokens of all of them for the experts of this one.
        experts_D: int64 [D], experts that each slot's domain really has (here).
        exchange: what is sent and received; None where this rank has all experts.
        replicas: the plans of other ranks that have the same experts, for the same micro-batch of theirs: what these
            activate is updated here as well.
    """

    domain_of_slot: tuple[int, ...]
    slot_of_sample_B: np.ndarray
    tables_LDV: np.ndarray
    counts_LDA: np.ndarray
    experts_D: np.ndarray
    exchange: ExchangePlan | None = None
    replicas: tuple["RoutePlan", ...] = ()

    def imbalance(self) -> float:
        """Largest over mean number of tokens of an expert, averaged over layers and used slots; 1 for a dense
        model."""
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
        slot_of_sample_B: int32, the slot of each sample.
        table: the routing table; None for a dense model, which gets an empty plan.

    Raises:
        RoutingError: a token id that the table does not know, or slots that do not fit the samples.
    """
    num_slots = len(domain_of_slot)
    slots = slot_of_sample_B.tolist()
    if len(slots) != len(tokens_BS) or min(slots) < 0 or max(slots) >= num_slots:
        raise RoutingError(
            f"the slots of {len(tokens_BS)} samples are {slots}; allowed: one for each, below {num_slots}"
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
        name, tokens = names[slot], tokens_BS[slot_of_sample_B == slot]
        size = table.vocab_size(name)
        if tokens.min() < 0 or tokens.max() >= size:
            bad = tokens[(tokens < 0) | (tokens >= size)][0]
            raise RoutingError(f"token id {bad} of domain {name} is outside its routing table of {size} tokens")
        for layer in range(table.num_layers):
            experts_T = table.array(layer, name)[tokens.reshape(-1)]
            counts_LDA[layer, slot] = np.bincount(experts_T, minlength=group_size)
    return RoutePlan(tuple(domain_of_slot), slot_of_sample_B, table.stacked(names), counts_LDA, experts_D)


def plan_exchange(plans: Sequence[RoutePlan], rank: int) -> RoutePlan:
    """The plan of one rank of an exchange group.

    Args:
        plans: of each rank's micro-batch by itself, on the same slots. rank: the one whose plan is wanted.
    """
    mine, size = plans[rank], len(plans)
    if len(mine.counts_LDA) == 0:
        return mine
    counts_LSDA = np.stack([plan.counts_LDA for plan in plans], 1)
    layers, _, slots, experts = counts_LSDA.shape
    counts_LSDRa = counts_LSDA.reshape(layers, size, slots, size, experts // size)
    rows_LSR = counts_LSDRa.sum((2, 4))
    arriving_LSDa = counts_LSDRa[:, :, :, rank]
    local = experts // size
    exchange = ExchangePlan(
        send_LR=rows_LSR[:, rank].astype(np.int32),
        receive_LR=rows_LSR[:, :, rank].astype(np.int32),
        arriving_LRG=arriving_LSDa.reshape(layers, size, -1).astype(np.int32),
        capacity=capacity_for(int(rows_LSR.sum(1).max()), int(rows_LSR[:, rank].sum(1).max()), size),
        imbalance=replace(mine, counts_LDA=counts_LSDA.sum(1)).imbalance(),
    )
    experts_D = (mine.experts_D - rank * local).clip(0, local)
    return replace(mine, counts_LDA=arriving_LSDa.sum(1), experts_D=experts_D, exchange=exchange)


def capacity_for(arriving: int, tokens: int, size: int) -> int:
    """Rows of the buffer for what arrives: one of at most four sizes, as each is compiled once.

    Args:
        arriving: what it has to hold. tokens: rows that each rank sends. size: ranks of the group.
    """
    return next(each for each in capacities(tokens, size) if each >= arriving)


def capacities(tokens: int, size: int) -> list[int]:
    """The sizes, ascending: 1.25, 2 and 4 times what a rank sends, and everything that all ranks send."""
    return sorted({min(-(-tokens * quarters // 4), tokens * size) for quarters in (5, 8, 16)} | {tokens * size})


def own_exchange(layers: int, slots: int, local_experts: int, tokens: int, rank: int, size: int) -> ExchangePlan:
    """That of a micro-batch whose tokens all go to the first expert of their own rank, for any capacity."""
    rows_LR = np.zeros((layers, size), np.int32)
    rows_LR[:, rank] = tokens
    arriving_LRG = np.zeros((layers, size, slots * local_experts), np.int32)
    arriving_LRG[:, rank, 0] = tokens
    return ExchangePlan(rows_LR, rows_LR, arriving_LRG, tokens, 1.0)
