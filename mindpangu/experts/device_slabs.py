"""The experts as the compiled step reads them: the store itself, or copies in separate buffers.

These classes and `npu_slabs.NpuSlabs` have the same methods, in the order of use: `reserve` buffers for the domains of
two consecutive steps, `fetch` experts into them, `lookup` the slabs of a micro-batch, and bring the slabs' gradients
`to_host`.
"""

from collections.abc import Callable, Sequence

import numpy as np
from mindspore import Tensor

from ascend_ops.waiting import wait_for_all
from mindpangu.experts.link import Link
from mindpangu.experts.store import ExpertStore, runs


class StoreViews:
    """Slabs for a CPU, which computes from the store's own memory: nothing moves.

    Attributes:
        moves: True if gradients must be copied to the host, which should begin early.
    """

    moves = False

    def __init__(self, store: ExpertStore):
        self._store = store

    def reserve(self, domains: set[int]) -> None:
        """Does nothing: the store has room for every domain."""

    def fetch(self, experts_LMA: np.ndarray) -> int:
        """Asks the store to have these experts (bool [L, M, A]) ready; returns 0 bytes."""
        self._store.will_need(experts_LMA)
        return 0

    def lookup(self, domain_of_slot: Sequence[int]) -> list[Tensor]:
        """Returns the slabs in the order of `ExpertStore.lookup`."""
        return [Tensor.from_numpy(slab) for slab in self._store.lookup(domain_of_slot)]

    def to_host(self, gradients: Sequence[Tensor]) -> Callable[[], list[np.ndarray]]:
        """Returns a function that returns the gradients as arrays after waiting for all launched functions."""
        return lambda: wait_for_all(gradients)


class StagedSlabs(StoreViews):
    """Copies of experts in separate buffers, one slab for each layer and domain in use.

    A buffer has rows for all experts of its domain, but only those of fetched experts are current; the others hold
    older values (zeros at first). No output depends on an expert without tokens, and its gradient is not read.

    Args:
        dtype: dtype of the device's computation; the host rounds while it copies.
    """

    moves = True

    def __init__(self, store: ExpertStore, link: Link, dtype: type = np.float32):
        super().__init__(store)
        self._link = link
        self._dtype = dtype
        self._slabs: dict[int, list[dict[str, np.ndarray]]] = {}  # domain id → one slab per layer
        self._free: list[list[dict[str, np.ndarray]]] = []

    def reserve(self, domains: set[int]) -> None:
        """Assigns buffers to these domains; all other domains lose theirs."""
        for domain in [domain for domain in self._slabs if domain not in domains]:
            self._free.append(self._slabs.pop(domain))
        for domain in sorted(domains - self._slabs.keys()):
            self._slabs[domain] = self._free.pop() if self._free else self._new_slabs()

    def fetch(self, experts_LMA: np.ndarray) -> int:
        """Copies experts (bool [L, M, A]) of reserved domains to the device; returns the number of bytes."""
        pairs: list[tuple[np.ndarray, np.ndarray]] = []
        for layer, domain in np.argwhere(experts_LMA.any(-1)).tolist():
            source = self._store.weights[layer][domain]
            target = self._slabs[domain][layer]
            rows = runs(experts_LMA[layer, domain])
            pairs += [(target[name][run], source[name][run]) for name in self._store.tensors for run in rows]
        return self._link.copy(pairs)

    def lookup(self, domain_of_slot: Sequence[int]) -> list[Tensor]:
        """Returns the slabs in the order of `ExpertStore.lookup`."""
        return [
            Tensor.from_numpy(self._slabs[domain][layer][name])
            for layer in range(self._store.num_layers)
            for domain in domain_of_slot
            for name in self._store.tensors
        ]

    def to_host(self, gradients: Sequence[Tensor]) -> Callable[[], list[np.ndarray]]:
        """Returns a function that returns the gradients as arrays.

        The arrays are read here, because reading them later would wait for the next launch.
        """
        arrays = wait_for_all(gradients)
        return lambda: arrays

    def _new_slabs(self) -> list[dict[str, np.ndarray]]:
        store = self._store
        return [
            {name: np.zeros((store.group_size, *shape), self._dtype) for name, shape in store.shapes.items()}
            for _ in range(store.num_layers)
        ]
