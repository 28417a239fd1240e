"""Which micro-batches of a step a rank trains on, and their plans, made from the samples of all ranks.

Every rank reads the same shards, so it knows what the others train on without asking them: what they will send it, and
which of its experts their samples activate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mindpangu.data.batch import Batch
from mindpangu.data.route_plan import RoutePlan, plan_exchange
from mindpangu.errors import RoutingError
from mindpangu.parallel.mesh import Coordinates, Mesh


@dataclass(frozen=True)
class StepPlan:
    """What one rank does in one step.

    Attributes:
        batches, plans: its micro-batches.
        num_targets: targets that count in the micro-batches of all ranks.
    """

    batches: tuple[Batch, ...]
    plans: tuple[RoutePlan, ...]
    num_targets: float


def plan_step(
    micro_batches: Sequence[Batch],
    mesh: Mesh,
    coordinates: Coordinates,
    num_slots: int,
    plan: Callable[[Batch], RoutePlan],
) -> StepPlan:
    """A rank's step.

    Args:
        micro_batches: of all ranks, in the order of `Mesh.owner`.
        num_slots: domain slots that the compiled step has.
        plan: of one micro-batch by itself.
    """
    count = len(micro_batches)
    batch_of = {mesh.owner(number, count): batch for number, batch in enumerate(micro_batches)}
    batches, plans = [], []
    for turn in range(count // mesh.data):

        def of_replica(replica: int, turn: int = turn) -> list[Batch]:
            first = mesh.data_index(Coordinates(replica, coordinates.sub_group, 0, 0))
            return align_slots([batch_of[first + member, turn] for member in range(mesh.members)], num_slots)

        together = [of_replica(replica) for replica in range(mesh.replicas)]
        of_replicas = [_plan_together(batches_R, coordinates.member, plan) for batches_R in together]
        mine = of_replicas.pop(coordinates.replica)
        batches.append(together[coordinates.replica][coordinates.member])
        plans.append(replace(mine, replicas=tuple(of_replicas)))
    num_targets = sum(float(batch.loss_mask_BS.sum()) for batch in micro_batches)
    return StepPlan(tuple(batches), tuple(plans), num_targets)


def _plan_together(batches: Sequence[Batch], member: int, plan: Callable[[Batch], RoutePlan]) -> RoutePlan:
    plans = [plan(batch) for batch in batches]
    return plans[0] if len(plans) == 1 else plan_exchange(plans, member)


def align_slots(batches: Sequence[Batch], num_slots: int) -> list[Batch]:
    """The batches on common domain slots: those of the domains that any of them uses, ascending.

    Ranks that exchange rows compute on each other's, so they must mean the same by a slot.

    Raises:
        RoutingError: more domains than slots.
    """
    if {batch.domain_of_slot for batch in batches} == {batches[0].domain_of_slot} and (
        len(batches[0].domain_of_slot) == num_slots
    ):
        return list(batches)
    used = [np.array(batch.domain_of_slot)[batch.slot_of_sample_B] for batch in batches]
    domains = np.unique(np.concatenate(used)).tolist()
    if len(domains) > num_slots:
        raise RoutingError(
            f"the micro-batches of ranks that exchange tokens have {len(domains)} domains, the step has {num_slots} "
            "slots for them; raise data.domains_per_step"
        )
    common = (*domains, *[domains[-1]] * (num_slots - len(domains)))
    return [
        replace(batch, domain_of_slot=common, slot_of_sample_B=np.searchsorted(domains, of_sample).astype(np.int32))
        for batch, of_sample in zip(batches, used, strict=True)
    ]
