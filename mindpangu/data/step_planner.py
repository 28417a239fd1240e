"""Plans a step for one rank: its micro-batches and the routing of their tokens.

Every rank reads the same shards. So without communication it knows the micro-batches of the other ranks, the rows that
they will send, and which of its experts they activate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mindpangu.config import Config
from mindpangu.data.batch import Batch
from mindpangu.data.route_plan import RoutePlan, plan_exchange, plan_routes
from mindpangu.domains import Domain
from mindpangu.errors import RoutingError
from mindpangu.parallel.mesh import Coordinates, Mesh
from mindpangu.routing import RoutingTable


@dataclass(frozen=True)
class StepPlan:
    """The work of one rank in one step.

    Attributes:
        batches: the rank's micro-batches.
        plans: their route plans.
        num_targets: number of targets that count, in the micro-batches of all ranks.
    """

    batches: tuple[Batch, ...]
    plans: tuple[RoutePlan, ...]
    num_targets: float


@dataclass(frozen=True)
class StepPlanner:
    """Plans the micro-batches and steps of one rank on the host, from token ids.

    Attributes:
        domains: the model's domains.
        table: the routing table; None for a dense model.
        mesh: the mesh of all ranks.
        coordinates: this rank's coordinates in the mesh.
        num_slots: number of domain slots of the compiled step.
    """

    domains: Sequence[Domain]
    table: RoutingTable | None
    mesh: Mesh
    coordinates: Coordinates
    num_slots: int

    @staticmethod
    def from_config(
        config: Config, domains: Sequence[Domain], table: RoutingTable | None, mesh: Mesh, coordinates: Coordinates
    ) -> "StepPlanner":
        # ranks that exchange tokens may have several groups of domains, and each group needs slots
        groups_per_exchange = config.data.domain_groups // mesh.sub_groups if mesh.members > 1 else 1
        return StepPlanner(domains, table, mesh, coordinates, config.data.domains_per_step * groups_per_exchange)

    def plan(self, batch: Batch, domain_of_slot: Sequence[int] | None = None) -> RoutePlan:
        """Plans one micro-batch without an exchange.

        Args:
            domain_of_slot: routes the batch as if its slots held these domains; None keeps the batch's own.
        """
        domain_of_slot = domain_of_slot or batch.domain_of_slot
        return plan_routes(batch.tokens_BS, domain_of_slot, batch.slot_of_sample_B, self.domains, self.table)

    def plan_step(self, micro_batches: Sequence[Batch]) -> StepPlan:
        """Plans this rank's share of a step.

        Args:
            micro_batches: the micro-batches of all ranks, in the order of `Mesh.owner`.
        """
        count = len(micro_batches)
        batch_of = {self.mesh.owner(index, count): batch for index, batch in enumerate(micro_batches)}
        own_batches = []
        plans = []
        for turn in range(count // self.mesh.data):
            batches_of_replica = [
                self._exchanged_batches(batch_of, replica, turn) for replica in range(self.mesh.replicas)
            ]
            replicas = [self._plan_member(batches) for batches in batches_of_replica]
            own_plan = replicas.pop(self.coordinates.replica)
            own_batches.append(batches_of_replica[self.coordinates.replica][self.coordinates.member])
            plans.append(replace(own_plan, replicas=tuple(replicas)))
        num_targets = sum(float(batch.loss_mask_BS.sum()) for batch in micro_batches)
        return StepPlan(tuple(own_batches), tuple(plans), num_targets)

    def _exchanged_batches(self, batch_of: Mapping[tuple[int, int], Batch], replica: int, turn: int) -> list[Batch]:
        """Returns the micro-batches, on common slots, of the ranks of this rank's sub-group in a replica.

        Args:
            batch_of: (data index, turn) → micro-batch.
            turn: index among the micro-batches of a rank.
        """
        first = self.mesh.data_index(Coordinates(replica, self.coordinates.sub_group, 0, 0))
        return align_slots([batch_of[first + member, turn] for member in range(self.mesh.members)], self.num_slots)

    def _plan_member(self, batches: Sequence[Batch]) -> RoutePlan:
        """Plans the batch of the member with this rank's index among those that exchange tokens."""
        plans = [self.plan(batch) for batch in batches]
        return plans[0] if len(plans) == 1 else plan_exchange(plans, self.coordinates.member)


def align_slots(batches: Sequence[Batch], num_slots: int) -> list[Batch]:
    """Gives batches common domain slots: one for each domain that any of them uses, in ascending order.

    Ranks that exchange rows compute on rows of each other, so a slot must have the same domain on all of them.

    Raises:
        RoutingError: the batches have more domains than there are slots.
    """
    same_slots = {batch.domain_of_slot for batch in batches} == {batches[0].domain_of_slot}
    if same_slots and len(batches[0].domain_of_slot) == num_slots:
        return list(batches)
    used = [np.array(batch.domain_of_slot)[batch.slot_of_sample_B] for batch in batches]
    domains = np.unique(np.concatenate(used)).tolist()
    if len(domains) > num_slots:
        raise RoutingError(
            f"the micro-batches of ranks that exchange tokens have {len(domains)} domains, but the step has "
            f"{num_slots} slots; raise data.domains_per_step"
        )
    common = (*domains, *[domains[-1]] * (num_slots - len(domains)))
    return [
        replace(batch, domain_of_slot=common, slot_of_sample_B=np.searchsorted(domains, domains_B).astype(np.int32))
        for batch, domains_B in zip(batches, used, strict=True)
    ]
