"""ExpertCache: the experts that generation is using, read from their files when a token first needs them.

Every RRE layer has a pool of entries, each for one expert of any domain; a new expert replaces the least recently used
one. The pools have static shapes and are inputs of the compiled functions. NumPy only; the caller reads the files.
"""

from collections.abc import Callable, Mapping

import numpy as np

from mindpangu.errors import ExpertStoreError

_MAX_GROUP_SIZE = 1 << 16  # an expert's id is domain id · _MAX_GROUP_SIZE + index in the group

ReadExpert = Callable[[int, int, int], Mapping[str, np.ndarray]]
"""(layer, domain id, index in the group) → tensors of the expert."""


class ExpertCache:
    """Pools of experts, one per layer.

    Attributes:
        num_entries: number of experts that a pool holds.
        fetched: number of times an expert has been read from disk.
        version_L: int64 [L], incremented whenever a layer's pool changes.

    Args:
        num_layers: number of RRE layers.
        shapes: tensor → its shape in one expert.
        num_entries: number of experts that a pool can hold; only those that are read take memory.
        read: reads one expert.
        dtype: dtype of the computation; experts are rounded to it as they are read.

    Raises:
        ExpertStoreError: the pools do not fit into memory.
    """

    def __init__(
        self,
        num_layers: int,
        shapes: Mapping[str, tuple[int, ...]],
        num_entries: int,
        read: ReadExpert,
        dtype: type = np.float32,
    ):
        self.num_entries = num_entries
        self.fetched = 0
        self.version_L = np.zeros(num_layers, np.int64)
        self._read = read
        try:  # zeros: the system allocates a page when it is first written
            self._pools: list[dict[str, np.ndarray]] = [
                {name: np.zeros((num_entries, *shape), dtype) for name, shape in shapes.items()}
                for _ in range(num_layers)
            ]
        except MemoryError as error:
            raise ExpertStoreError(
                f"{num_entries} experts per layer do not fit: {error}; set --expert-memory"
            ) from None
        self._entry_of: list[dict[int, int]] = [{} for _ in range(num_layers)]
        # [layer, entry]: the expert's id and the time of its last use; -1 for an empty entry
        self._expert_in = np.full((num_layers, num_entries), -1, np.int64)
        self._last_used = np.full((num_layers, num_entries), -1, np.int64)
        self._clock = 0

    def pool(self, layer: int) -> list[np.ndarray]:
        """Returns the tensors of a layer in the order of `shapes`, [entries, …]."""
        return list(self._pools[layer].values())

    def entries(self, layer: int, domains_T: np.ndarray, experts_T: np.ndarray) -> np.ndarray:
        """Returns the entry of each token's expert, int32 [T]; first reads the experts that are not in the pool.

        Args:
            domains_T: domain id of each token.
            experts_T: index of each token's expert in the domain's group.

        Raises:
            ExpertStoreError: the tokens need more experts than there are entries.
            Exception: whatever `read` raises; the pool stays usable.
        """
        wanted_T = np.asarray(domains_T, np.int64) * _MAX_GROUP_SIZE + experts_T
        unique_ids, inverse_T = np.unique(wanted_T, return_inverse=True)
        experts = unique_ids.tolist()
        if len(experts) > self.num_entries:
            raise ExpertStoreError(
                f"{len(experts)} experts are needed at once; a layer has room for {self.num_entries}"
            )
        entry_of = self._entry_of[layer]
        last_used = self._last_used[layer]
        self._clock += 1
        missing = []
        for expert in experts:
            if expert in entry_of:
                last_used[entry_of[expert]] = self._clock
            else:
                missing.append(expert)
        for expert in missing:
            self._fetch(layer, expert)
        return np.array([entry_of[expert] for expert in experts], np.int32)[inverse_T]

    def _fetch(self, layer: int, expert: int) -> None:
        tensors = self._read(layer, *divmod(expert, _MAX_GROUP_SIZE))
        entry = int(self._last_used[layer].argmin())
        self._entry_of[layer].pop(self._expert_in[layer, entry], None)
        for name, tensor in tensors.items():
            self._pools[layer][name][entry] = tensor
        self._entry_of[layer][expert] = entry
        self._expert_in[layer, entry] = expert
        self._last_used[layer, entry] = self._clock
        self.version_L[layer] += 1
        self.fetched += 1


def entries_within(
    num_bytes: int, num_layers: int, shapes: Mapping[str, tuple[int, ...]], least: int, itemsize: int
) -> int:
    """Returns the number of experts per layer that fit into some memory.

    Args:
        num_bytes: size of the memory.
        least: number of experts that a layer may need at once.
        itemsize: bytes of one element.

    Raises:
        ExpertStoreError: fewer than `least` fit.
    """
    expert_bytes = itemsize * sum(int(np.prod(shape)) for shape in shapes.values())
    num_entries = num_bytes // (num_layers * expert_bytes)
    if num_entries < least:
        raise ExpertStoreError(
            f"{num_bytes / 1e6:,.1f} MB hold {num_entries} experts in each of {num_layers} RRE layers; {least} may be "
            "needed at once (the largest group of a domain, or one for each text of a batch): give at least "
            f"{least * num_layers * expert_bytes / 1e6:,.1f} MB"
        )
    return num_entries
