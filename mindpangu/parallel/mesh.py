"""The mesh: which of the ranks share what. Arithmetic alone, so that 512 ranks can be looked at without one.

    rank = data index · tensor + tensor index                      tensor ranks share a layer's matrices
    data index = replica · expert + expert index                   expert ranks share the experts
    expert index = sub-group · members + member                    only ranks of a sub-group exchange tokens

So the ranks of a node, which stand side by side, share matrices; and a sub-group's nodes stand side by side.
"""

from dataclasses import dataclass

from mindpangu.config import Config
from mindpangu.errors import ConfigError

Ranks = tuple[int, ...]


@dataclass(frozen=True)
class Coordinates:
    """One rank's coordinates."""

    replica: int
    sub_group: int
    member: int
    tensor: int


@dataclass(frozen=True)
class Mesh:
    """Sizes of the axes.

    Attributes:
        data: ranks along which samples are divided; dense parameters are the same on all of them.
        tensor: ranks that share a layer's matrices, and see the same samples.
        expert: ranks that share the experts; divides `data`, and the experts are replicated data / expert times.
        sub_groups: parts of `expert`, each with domains of its own.
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
        """The mesh of a configuration. Experts that are on every rank have no sub-groups."""
        parallelism = config.parallelism
        expert = parallelism.expert_parallel if config.model.rre_layers else 1
        sub_groups = config.data.domain_groups if expert > 1 else 1
        return Mesh(parallelism.data_parallel, parallelism.tensor_parallel, expert, sub_groups)

    def describe(self) -> str:
        """In words, e.g. "8 = data 4 × tensor 2; experts on 4 ranks in 2 sub-groups"."""
        text = f"{self.size} = data {self.data} × tensor {self.tensor}"
        if self.expert > 1:
            text += f"; experts on {self.expert} ranks"
        return f"{text} in {self.sub_groups} sub-groups" if self.sub_groups > 1 else text

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return self.data * self.tensor

    @property
    def members(self) -> int:
        """Data-parallel ranks of one sub-group of one replica: those that exchange rows."""
        return self.expert // self.sub_groups

    @property
    def replicas(self) -> int:
        """How many ranks have the same experts."""
        return self.data // self.expert

    def coordinates(self, rank: int) -> Coordinates:
        """The coordinates of a rank."""
        data, tensor = divmod(rank, self.tensor)
        replica, expert = divmod(data, self.expert)
        return Coordinates(replica, *divmod(expert, self.members), tensor)

    def data_index(self, coordinates: Coordinates) -> int:
        """Which of the data-parallel ranks stands at a coordinates."""
        return coordinates.replica * self.expert + coordinates.sub_group * self.members + coordinates.member

    def rank(self, coordinates: Coordinates) -> int:
        """The rank at a coordinates."""
        return self.data_index(coordinates) * self.tensor + coordinates.tensor

    def tensor_group(self, rank: int) -> Ranks:
        """The ranks that share this one's matrices."""
        first = rank - rank % self.tensor
        return tuple(range(first, first + self.tensor))

    def data_group(self, rank: int) -> Ranks:
        """The ranks that have the same part of the dense parameters."""
        return tuple(range(rank % self.tensor, self.size, self.tensor))

    def exchange_group(self, rank: int) -> Ranks:
        """The ranks that this one exchanges rows with: its sub-group, at its coordinates in the tensor group."""
        first = rank // self.tensor // self.members * self.members
        return tuple(data * self.tensor + rank % self.tensor for data in range(first, first + self.members))

    def node_exchange_group(self, rank: int) -> Ranks:
        """`exchange_group` with all ranks of its tensor groups: whole nodes, for chips that allow no other group."""
        return tuple(sorted(rank for member in self.exchange_group(rank) for rank in self.tensor_group(member)))

    def expert_replicas(self, rank: int) -> Ranks:
        """The ranks that have the same part of the same experts."""
        step = self.expert * self.tensor
        return tuple(range(rank % step, self.size, step))

    def groups(self, kind: str) -> list[Ranks]:
        """Every group of a kind ("tensor_group" …), each once, in the order of their first ranks."""
        return sorted({getattr(self, kind)(rank) for rank in range(self.size)})

    def owner(self, micro_batch: int, micro_batches: int) -> tuple[int, int]:
        """Who trains on a micro-batch of a step: (data index, which of that rank's it is).

        The micro-batches of a step are numbered by domain group first, so each sub-group has a run of them.
        """
        of_group = micro_batches // self.sub_groups
        sub_group, number = divmod(micro_batch, of_group)
        turn, worker = divmod(number, self.replicas * self.members)
        replica, member = divmod(worker, self.members)
        return self.data_index(Coordinates(replica, sub_group, member, 0)), turn


CARDS_OF_NODE, CARDS_OF_CLUSTER = 8, 4


def broken_rule_of_910a(ranks: Ranks) -> str | None:
    """What HCCL's rule for groups on 910A says against one, or None.

    A node has two clusters of four cards. A group of one or two cards lies inside a cluster; a larger one consists of
    whole clusters, the same on each of its nodes.
    """
    cards_of: dict[int, set[int]] = {}
    for rank in ranks:
        cards_of.setdefault(rank // CARDS_OF_NODE, set()).add(rank % CARDS_OF_NODE)
    clusters = [set(range(first, first + CARDS_OF_CLUSTER)) for first in range(0, CARDS_OF_NODE, CARDS_OF_CLUSTER)]
    if len(ranks) <= 2 and len(cards_of) == 1:
        (cards,) = cards_of.values()
        return None if any(cards <= cluster for cluster in clusters) else "its cards lie in both clusters of a node"
    if len({frozenset(cards) for cards in cards_of.values()}) > 1:
        return "it has other cards on one node than on another"
    (cards,) = {frozenset(cards) for cards in cards_of.values()}
    whole = set().union(*(cluster for cluster in clusters if cluster <= cards))
    return None if cards == whole else "it has a part of a cluster of four cards"
