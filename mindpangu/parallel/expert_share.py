"""The share of a rank: the experts that it holds, and its shard of each."""

from dataclasses import dataclass

from mindpangu.errors import ConfigError
from mindpangu.parallel.mesh import Coordinates, Mesh
from mindpangu.parallel.sharding import TensorSlice


@dataclass(frozen=True)
class ExpertShare:
    """The experts of one rank; by default all experts of all domains.

    The members of a sub-group divide each expert group of its domains into equal runs, one per member. The ranks of a
    tensor group divide each expert: the columns of the first matrices, the rows of the last, the columns of its bias.

    Attributes:
        domains: ids of the domains whose experts the rank holds; None for all.
        member, members: index of its run of experts, and the number of runs.
        tensor, tensors: index of its shard of each expert, and the number of shards.
    """

    domains: frozenset[int] | None = None
    member: int = 0
    members: int = 1
    tensor: int = 0
    tensors: int = 1

    @staticmethod
    def from_mesh(mesh: Mesh, coordinates: Coordinates, groups: tuple[tuple[int, ...], ...]) -> "ExpertShare":
        """Returns the share of the rank at these coordinates. Sub-group i holds the domains groups[i]."""
        domains = frozenset(groups[coordinates.sub_group]) if mesh.sub_groups > 1 else None
        return ExpertShare(domains, coordinates.member, mesh.members, coordinates.tensor, mesh.tensor)

    def has(self, domain: int) -> bool:
        """True if this rank holds experts of a domain."""
        return self.domains is None or domain in self.domains

    def experts(self, group_size: int) -> range:
        """Returns the experts of a group that this rank holds, as indices in the group.

        Raises:
            ConfigError: the members cannot share the group equally.
        """
        if group_size % self.members:
            raise ConfigError(
                f"the largest group has {group_size} experts (domains.experts_per_domain), which {self.members} ranks "
                "of a sub-group (parallelism.expert_parallel / data.domain_groups) cannot share equally"
            )
        count = group_size // self.members
        return range(self.member * count, (self.member + 1) * count)

    def tensor_slice(self, name: str, shape: tuple[int, ...]) -> TensorSlice:
        """Returns this rank's slice of an expert's tensor ("up", "down_bias" …)."""
        # the last matrix is divided along its rows, every other tensor along its last axis
        axis = 0 if name == "down" else len(shape) - 1
        return TensorSlice.equal(shape, axis, self.tensor, self.tensors)
