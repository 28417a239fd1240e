"""Which of the experts a rank has, and which part of each."""

from dataclasses import dataclass

from mindpangu.errors import ConfigError
from mindpangu.parallel.mesh import Coordinates, Mesh
from mindpangu.parallel.sharding import Part


@dataclass(frozen=True)
class ExpertShare:
    """All experts of all domains by default.

    Every domain of the rank's sub-group has its group of experts divided into equal runs, one for each member. The
    ranks of a tensor group divide each expert: columns of the first product, rows of the second, columns of its bias.

    Attributes:
        domains: ids of the domains whose experts the rank has; None for all.
        member, members: which run of the experts it has, of how many.
        tensor, tensors: which part of each expert, of how many.
    """

    domains: frozenset[int] | None = None
    member: int = 0
    members: int = 1
    tensor: int = 0
    tensors: int = 1

    @staticmethod
    def from_mesh(mesh: Mesh, coordinates: Coordinates, groups: tuple[tuple[int, ...], ...]) -> "ExpertShare":
        """The share of a coordinates in the mesh, where sub-group i has the domains groups[i]."""
        domains = frozenset(groups[coordinates.sub_group]) if mesh.sub_groups > 1 else None
        return ExpertShare(domains, coordinates.member, mesh.members, coordinates.tensor, mesh.tensor)

    def has(self, domain: int) -> bool:
        """Whether this rank has experts of a domain."""
        return self.domains is None or domain in self.domains

    def experts(self, group_size: int) -> range:
        """Which experts of a group it has, by their index in the group. Raises ConfigError for unequal shares."""
        if group_size % self.members:
            raise ConfigError(
                f"the largest group has {group_size} experts (domains.experts_per_domain), which {self.members} ranks "
                "of a sub-group (parallelism.expert_parallel / data.domain_groups) cannot share equally"
            )
        count = group_size // self.members
        return range(self.member * count, (self.member + 1) * count)

    def part(self, name: str, shape: tuple[int, ...]) -> Part:
        """This rank's part of an expert's tensor ("up", "down_bias" …)."""
        # the second matrix is divided along its rows, everything else along its last axis
        axis = 0 if name == "down" else len(shape) - 1
        return Part.equal(shape, axis, self.tensor, self.tensors)
