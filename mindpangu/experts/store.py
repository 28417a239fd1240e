"""ExpertStore: weights and Adam state of every expert, in host memory, one copy.

One contiguous array ("slab") per (RRE layer, domain, tensor) holds the experts of the group along the first axis, so an
expert is one row, and a compiled step can take the slabs themselves as inputs instead of copies. All slabs have the
size of the largest group, so the compiled step has one shape. NumPy only; `ecss.py` decides when experts move and what
waits for what.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ascend_ops.expert_adam import expert_adam
from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder
from mindpangu.domains import Domain
from mindpangu.experts.host_memory import HostMemory, page_rounded
from mindpangu.model.initialization import MATRICES, expert_shapes, initial_expert
from mindpangu.parallel.expert_share import ExpertShare

_PIECE = 1 << 16  # numbers that are added in float32; a short piece bounds the rounding error of a dot product

Slab = dict[str, np.ndarray]
"""The tensors of all experts of one layer and domain, by name."""


class ExpertStore:
    """All experts of a run, or those of one rank, numbered from 0 in each group.

    Attributes:
        tensors: names of an expert's tensors, in the order of a slab (`model.initialization.network_tensors`).
        weights, moment1, moment2: [layer][domain id] → slab: e.g. up [A, H, F], up_bias [A, F], down [A, F, H],
            down_bias [A, H], float32; empty for domains without experts here. A rank of a tensor group holds a shard of
            F, and of the H of down_bias.
        step_counts: int64 [L, M, A], number of times each expert has been updated.
        exists_LMA: bool [L, M, A], False for the empty rows of a domain with fewer than A experts.
        share: the experts that this store holds.
        group_size: A, the number of rows of a slab: this rank's experts of the largest group.
        first: index of this store's expert 0 in its group.
        slices: tensor → the slice of it that is held here.
        shapes: tensor → shape of that slice.
        before_update: called with (layer, domain id, indices of experts) before `update` changes these experts.

    Args:
        share: None for all experts.

    Raises:
        ExpertStoreError: the file of a mapped store cannot be created.
        ConfigError: a group of experts cannot be divided equally.
    """

    def __init__(self, config: Config, domains: Sequence[Domain], share: ExpertShare | None = None):
        self.domains = tuple(domains)
        self.num_layers = config.model.rre_layers
        self.share = share or ExpertShare()
        own = self.share.experts(max((domain.num_experts for domain in domains), default=0))
        self.group_size = len(own)
        self.first = own.start
        self.slices = {name: self.share.tensor_slice(name, shape) for name, shape in expert_shapes(config).items()}
        self.shapes = {name: held.local_shape for name, held in self.slices.items()}
        self.tensors = tuple(self.shapes)
        self._config = config
        self._optimizer = config.optimizer
        self._memory = HostMemory(self._num_bytes(), _scratch_folder(config))
        self.weights = self._zero_slabs()
        self.moment1 = self._zero_slabs()
        self.moment2 = self._zero_slabs()
        self.step_counts = np.zeros((self.num_layers, len(domains), self.group_size), np.int64)
        self.exists_LMA = np.zeros(self.step_counts.shape, bool)
        for domain_id, domain in enumerate(domains):
            if self.share.has(domain_id):
                self.exists_LMA[:, domain_id, : max(domain.num_experts - self.first, 0)] = True
        self.before_update: Callable[[int, int, np.ndarray], None] | None = None
        self._threads = ThreadPoolExecutor(config.experts.host_threads, thread_name_prefix="experts")

    def initialize(self) -> None:
        """Draws the initial weights, each expert from its own random stream (layer, domain name, index)."""

        def fill(layer: int, domain: int, index: int) -> None:
            whole = initial_expert(self._config, layer, self.domains[domain].name, self.first + index)
            for name, held in self.slices.items():
                self.weights[layer][domain][name][index] = held.of(whole[name])

        for _ in self._threads.map(lambda expert: fill(*expert), self.experts()):
            pass

    def experts(self) -> list[tuple[int, int, int]]:
        """Lists (layer, domain id, index) of every expert in this store. Its index in the group is `first` + index."""
        return [(layer, domain, index) for layer, domain, index in np.argwhere(self.exists_LMA).tolist()]

    def describe(self) -> str:
        """Describes the store for the log: number of experts, size with their Adam state, and location."""
        num_experts = int(self.exists_LMA.sum())
        return f"{num_experts}, {self._num_bytes() / 1e6:,.1f} MB with Adam's moments, {self._memory.location}"

    def lookup(self, domain_of_slot: Sequence[int]) -> list[np.ndarray]:
        """Returns the slabs that a step takes as inputs, without copying: by layer, slot, and tensor."""
        return [
            self.weights[layer][domain][name]
            for layer in range(self.num_layers)
            for domain in domain_of_slot
            for name in self.tensors
        ]

    def will_need(self, experts_LMA: np.ndarray) -> None:
        """Makes a mapped store start reading these experts and their moments. Does nothing for a store in memory.

        Args:
            experts_LMA: bool [L, M, A].
        """
        if not self._memory.mapped:
            return
        for layer, domain in np.argwhere(experts_LMA.any(-1)).tolist():
            for group in (self.weights, self.moment1, self.moment2):
                for tensor in group[layer][domain].values():
                    for rows in runs(experts_LMA[layer, domain]):
                        self._memory.will_need(tensor[rows])

    def update(
        self,
        gradients: Mapping[tuple[int, int], Sequence[np.ndarray]],
        updated_LMA: np.ndarray,
        learning_rate: float,
        gradient_scale: float,
    ) -> int:
        """Applies Adam to some experts. All others remain unchanged to the bit.

        Args:
            gradients: (layer, domain id) → the gradients of its slab, in the order of `tensors`.
            updated_LMA: bool [L, M, A], the experts to update, usually those that received a token in this step.
            learning_rate: learning rate of this step.
            gradient_scale: factor on the gradients (clipping and loss scale).

        Returns:
            The number of experts updated.
        """
        beta1, beta2 = self._optimizer.betas
        for layer, domain in np.argwhere(updated_LMA.any(-1)).tolist():
            experts = np.flatnonzero(updated_LMA[layer, domain])
            hook = self.before_update  # read once: another thread may clear it
            if hook is not None:
                hook(layer, domain, experts)
            self.step_counts[layer, domain, experts] += 1
            for name, gradient in zip(self.tensors, gradients[layer, domain], strict=True):
                expert_adam(
                    self.weights[layer][domain][name],
                    self.moment1[layer][domain][name],
                    self.moment2[layer][domain][name],
                    gradient,
                    experts,
                    self.step_counts[layer, domain, experts],
                    learning_rate=learning_rate,
                    beta1=beta1,
                    beta2=beta2,
                    eps=self._optimizer.expert_eps,
                    weight_decay=self._optimizer.weight_decay if name in MATRICES else 0.0,
                    gradient_scale=gradient_scale,
                )
        return int(updated_LMA.sum())

    def squared_norm(
        self, gradients: Mapping[tuple[int, int], Sequence[np.ndarray]], activated_LMA: np.ndarray
    ) -> float:
        """Sums the squares of the activated experts' gradients, in float64 and in a fixed order."""
        pieces = [
            gradient[rows].reshape(-1)
            for layer, domain in np.argwhere(activated_LMA.any(-1)).tolist()
            for gradient in gradients[layer, domain]
            for rows in runs(activated_LMA[layer, domain])
        ]
        return float(sum(self._threads.map(_squared_norm, pieces)))

    def _num_bytes(self) -> int:
        slab = sum(page_rounded(4 * self.group_size * int(np.prod(shape))) for shape in self.shapes.values())
        return 3 * self.num_layers * sum(map(self.share.has, range(len(self.domains)))) * slab

    def _zero_slabs(self) -> list[list[Slab]]:
        return [[self._zero_slab(domain) for domain in range(len(self.domains))] for _ in range(self.num_layers)]

    def _zero_slab(self, domain: int) -> Slab:
        if not self.share.has(domain):
            return {}
        return {name: self._memory.zeros((self.group_size, *shape)) for name, shape in self.shapes.items()}


def runs(chosen_A: np.ndarray) -> list[slice]:
    """Returns the runs of True in a bool [A]: few large pieces of memory instead of many small ones."""
    edges = np.flatnonzero(np.diff(chosen_A.astype(np.int8), prepend=0, append=0))
    return [slice(start, end) for start, end in edges.reshape(-1, 2).tolist()]


def _scratch_folder(config: Config) -> Path | None:
    if config.experts.storage == "memory":
        return None
    return Path(config.experts.storage_folder or RunFolder.from_config(config).root)


def _squared_norm(flat: np.ndarray) -> float:
    pieces = np.split(flat, range(_PIECE, flat.size, _PIECE))
    return float(sum(float(np.dot(piece, piece)) for piece in pieces))
