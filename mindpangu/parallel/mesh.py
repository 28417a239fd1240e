"""The mesh: the arrangement of ranks in groups. Pure arithmetic, so 512 ranks can be examined without a cluster.

    rank = data index · tensor + tensor index                      tensor ranks share a layer's matrices
    data index = replica · expert + expert index                   expert ranks share the experts
    expert index = sub-group · members + member                    only ranks of a sub-group exchange tokens

So the ranks that share matrices are consecutive, as are the ranks of a node, and so are the nodes of a sub-group.
"""

from dataclasses import dataclass

from mindpangu.config import Config
from mindpangu.errors import ConfigError

Ranks = tuple[int, ...]


@dataclass(frozen=True)
class Coordinates:
    """The coordinates of one rank."""

    replica: int
    sub_group: int
    member: int
    tensor: int


@dataclass(frozen=True)
class Mesh:
    """The sizes of the axes.

    Attributes:
        data: number of ranks that divide the samples; dense parameters are the same on all of them.
        tensor: number of ranks that share a layer's matrices and see the same samples.
        expert: number of ranks that share the experts. Divides `data`: the experts are replicated data / expert times.
        sub_groups: number of sub-groups of `expert`, each with its own domains.
    """

    data: int = 1
    tensor: int = 1
    expert: int = 1
    sub_groups: int = 1

    def __post_init__(self) -> None:
        for inner, outer in (("expert", "data"), ("sub_groups", "expert")):
            if getattr(self, outer) % getattr(self, inner):
                raise ConfigError(
                    f"mesh: {inner} {getattr(self, inner)} does not divide {outer} {getattr(self, outer)}"
                )

    @staticmethod
    def from_config(config: Config) -> "Mesh":
        """Returns the mesh of a configuration. There is one sub-group if every rank holds all experts."""
        parallelism = config.parallelism
        expert = parallelism.expert_parallel if config.model.rre_layers else 1
        sub_groups = config.data.domain_groups if expert > 1 else 1
        return Mesh(parallelism.data_parallel, parallelism.tensor_parallel, expert, sub_groups)

    def describe(self) -> str:
        """Describes the mesh, e.g. "8 = data 4 × tensor 2; experts on 4 ranks in 2 sub-groups"."""
        text = f"{self.size} = data {self.data} × tensor {self.tensor}"
        if self.expert > 1:
            text += f"; experts on {self.expert} ranks"
        return f"{text} in {self.sub_groups} sub-groups" if self.sub_groups > 1 else text

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.data * self.tensor

    @property
    def members(self) -> int:
        """Number of data-parallel ranks in one sub-group of one replica: those that exchange rows."""
        return self.expert // self.sub_groups

    @property
    def replicas(self) -> int:
        """Number of ranks that hold the same experts."""
        return self.data // self.expert

    def coordinates(self, rank: int) -> Coordinates:
        """Returns the coordinates of a rank."""
        data, tensor = divmod(rank, self.tensor)
        replica, expert = divmod(data, self.expert)
        return Coordinates(replica, *divmod(expert, self.members), tensor)

    def data_index(self, coordinates: Coordinates) -> int:
        """Returns the data index at these coordinates."""
        return coordinates.replica * self.expert + coordinates.sub_group * self.members + coordinates.member

    def rank(self, coordinates: Coordinates) -> int:
        """Returns the rank at these coordinates."""
        return self.data_index(coordinates) * self.tensor + coordinates.tensor

    def tensor_group(self, rank: int) -> Ranks:
        """Returns the ranks that share a layer's matrices with this one."""
        first = rank - rank % self.tensor
        return tuple(range(first, first + self.tensor))

    def data_group(self, rank: int) -> Ranks:
        """Returns the ranks that hold the same shard of the dense parameters."""
        return tuple(range(rank % self.tensor, self.size, self.tensor))

    def exchange_group(self, rank: int) -> Ranks:
        """Returns the ranks that exchange rows with this one: those of its sub-group with the same tensor index."""
        first = rank // self.tensor // self.members * self.members
        return tuple(data * self.tensor + rank % self.tensor for data in range(first, first + self.members))

    def node_exchange_group(self, rank: int) -> Ranks:
        """Returns `exchange_group` with the tensor groups of its ranks: whole nodes, for chips that require them."""
        return tuple(sorted(rank for member in self.exchange_group(rank) for rank in self.tensor_group(member)))

    def expert_replicas(self, rank: int) -> Ranks:
        """Returns the ranks that hold the same shard of the same experts."""
        step = self.expert * self.tensor
        return tuple(range(rank % step, self.size, step))

    def groups(self, kind: str) -> list[Ranks]:
        """Returns each group of a kind ("tensor_group" …) once, in the order of their first ranks."""
        return sorted({getattr(self, kind)(rank) for rank in range(self.size)})

    def owner(self, micro_batch: int, micro_batches: int) -> tuple[int, int]:
        """Returns the owner of a micro-batch of a step: (data index, index among that rank's micro-batches).

        The micro-batches of a step are ordered by group of domains, so each sub-group has a contiguous run of them.

        Args:
            micro_batch: index of the micro-batch in the step.
            micro_batches: number of micro-batches of the step.
        """
        per_group = micro_batches // self.sub_groups
        sub_group, index = divmod(micro_batch, per_group)
        turn, worker = divmod(index, self.replicas * self.members)
        replica, member = divmod(worker, self.members)
        return self.data_index(Coordinates(replica, sub_group, member, 0)), turn


CARDS_OF_NODE = 8
CARDS_OF_CLUSTER = 4


def broken_rule_of_910a(ranks: Ranks) -> str | None:
    """Describes how a group breaks HCCL's rule for groups on 910A; None if it does not.

    A node has two clusters of four cards. A group of one or two cards must lie inside one cluster; a larger group must
    consist of whole clusters, the same ones on each of its nodes.
    """
    cards_of: dict[int, set[int]] = {}
    for rank in ranks:
        cards_of.setdefault(rank // CARDS_OF_NODE, set()).add(rank % CARDS_OF_NODE)
    clusters = [set(range(first, first + CARDS_OF_CLUSTER)) for first in range(0, CARDS_OF_NODE, CARDS_OF_CLUSTER)]
    if len(ranks) <= 2 and len(cards_of) == 1:
        (cards,) = cards_of.values()
        return None if any(cards <= cluster for cluster in clusters) else "its cards lie in both clusters of a node"
    cards = next(iter(cards_of.values()))
    if any(others != cards for others in cards_of.values()):
        return "it has other cards on one node than on another"
    whole_clusters = set().union(*(cluster for cluster in clusters if cluster <= cards))
    return None if cards == whole_clusters else "it has a part of a cluster of four cards"
