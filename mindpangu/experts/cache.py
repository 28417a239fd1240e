"""ExpertCache: the experts that generation is using, read from their files when a token first needs them.

Every RRE layer has a pool of places (entries), each for one expert of any domain; the least recently used one makes
room. The pools have static shapes and enter the compiled functions as they are. NumPy only; where experts come from is
the caller's.
"""

from collections.abc import Callable, Mapping

import numpy as np

from mindpangu.errors import ExpertStoreError

_MOST_EXPERTS = 1 << 16  # of a group; an expert's number here is domain id · this + index in the group

ReadExpert = Callable[[int, int, int], Mapping[str, np.ndarray]]


class ExpertCache:
    """Pools of experts, one a layer.

    Attributes:
        num_entries: number of experts that a pool holds.
        fetched: number of times an expert has been read from disk.
        version_L: int64 [L], incremented whenever a layer's pool changes.

    Args:
        num_layers: L, RRE layers.
        shapes: tensor → shape of one expert's.
        num_entries: experts that a pool shall hold; memory is taken only for those that are read.
        read: (layer, domain id, index in the group) → tensors of the expert.
        dtype: of the computation; experts are rounded to it as they are read.
    """

    def __init__(
        self,
        num_layers: int,
        shapes: Mapping[str, tuple[int, ...]],
        num_entries: int,
        read: ReadExpert,
        dtype=np.float32,
    ):
        self.num_entries, self.fetched = num_entries, 0
        self.version_L = np.zeros(num_layers, np.int64)
        self._read = read
        try:  # zeros: the system gives memory to a page when it is first written
            self._pools = [
                {name: np.zeros((num_entries, *shape), dtype) for name, shape in shapes.items()}
                for _ in range(num_layers)
            ]
        except MemoryError as error:
            raise ExpertStoreError(f"{num_entries} experts a layer do not fit: {error}; set --expert-memory") from None
        self._entry_of: list[dict[int, int]] = [{} for _ in range(num_layers)]
        self._expert_in_LN = np.full((num_layers, num_entries), -1, np.int64)
        self._last_used_LN = np.full((num_layers, num_entries), -1, np.int64)
        self._clock = 0

    def pool(self, layer: int) -> list[np.ndarray]:
        """The tensors of a layer in the order of `shapes`, [entries, …]."""
        return list(self._pools[layer].values())

    def entries(self, layer: int, domains_T: np.ndarray, experts_T: np.ndarray) -> np.ndarray:
        """int32 [T]: the entry of each token's expert; experts that have none are read now.

        Args:
            domains_T, experts_T: domain id and index in the group, of each token.

        Raises:
            ExpertStoreError: more different experts than entries. Whatever `read` raises; the pool stays usable.
        """
        wanted_T = np.asarray(domains_T, np.int64) * _MOST_EXPERTS + experts_T
        different, token_T = np.unique(wanted_T, return_inverse=True)
        if len(different) > self.num_entries:
            raise ExpertStoreError(
                f"{len(different)} experts are needed at once; a layer has room for {self.num_entries}"
            )
        held, last_used_N = self._entry_of[layer], self._last_used_LN[layer]
        self._clock += 1
        missing = []
        for expert in different.tolist():
            if expert in held:
                last_used_N[held[expert]] = self._clock
            else:
                missing.append(expert)
        for expert in missing:
            self._fetch(layer, expert)
        return np.array([held[expert] for expert in different.tolist()], np.int32)[token_T]

    def _fetch(self, layer: int, expert: int) -> None:
        tensors = self._read(layer, *divmod(expert, _MOST_EXPERTS))
        entry = int(self._last_used_LN[layer].argmin())
        self._entry_of[layer].pop(self._expert_in_LN[layer, entry], None)
        for name, tensor in tensors.items():
            self._pools[layer][name][entry] = tensor
        self._entry_of[layer][expert], self._expert_in_LN[layer, entry] = entry, expert
        self._last_used_LN[layer, entry] = self._clock
        self.version_L[layer] += 1
        self.fetched += 1


def entries_within(
    num_bytes: int, num_layers: int, shapes: Mapping[str, tuple[int, ...]], least: int, itemsize: int
) -> int:
    """Experts a layer that fit a memory.

    Args:
        least: experts that a layer may need at once. itemsize: bytes of a number.

    Raises:
        ExpertStoreError: not even `least` fit.
    """
    expert = itemsize * sum(int(np.prod(shape)) for shape in shapes.values())
    num_entries = num_bytes // (num_layers * expert)
    if num_entries < least:
        raise ExpertStoreError(
            f"{num_bytes / 1e6:,.1f} MB hold {num_entries} experts in each of {num_layers} RRE layers; {least} may be "
            "needed at once (the largest group of a domain, or one for each text of a batch): give at least "
            f"{least * num_layers * expert / 1e6:,.1f} MB"
        )
    return num_entries
