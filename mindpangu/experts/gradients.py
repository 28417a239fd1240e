"""Gradients of a step's experts on the host, summed over domain slots and micro-batches."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from mindpangu.data.route_plan import RoutePlan
from mindpangu.experts.link import Link
from mindpangu.experts.store import ExpertStore, runs

SlabGradient = list[np.ndarray]
"""The gradients of a slab, in the order of `ExpertStore.tensors`."""
AddUp = Callable[[SlabGradient], SlabGradient]
"""Sums a slab's gradients over ranks."""


class HostGradients:
    """One gradient for each slab in use, (layer, domain id) → SlabGradient, float32.

    Rows of experts whose gradients did not arrive are not to be read.

    Attributes:
        received_LDA: bool [L, D, A], the experts whose gradients have arrived.

    Args:
        device_dtype: gradients come from a device's memory in this dtype and are always copied; None if they are in
            the host's memory: then what arrives once is used where it is.
    """

    def __init__(self, store: ExpertStore, link: Link, device_dtype: type | None = None):
        self._store, self._link, self._staged = store, link, device_dtype is not None
        self._device_dtype = device_dtype
        self.slabs: dict[tuple[int, int], SlabGradient] = {}
        self.received_LDA = np.zeros(store.step_counts.shape, bool)
        self._arrivals: Counter[int] = Counter()
        self._buffers: list[SlabGradient] = []
        self._free: list[SlabGradient] = []

    def begin(self, plans: Sequence[RoutePlan]) -> None:
        """Forgets the former step's gradients and prepares for those of these micro-batches."""
        self.slabs = {}
        self.received_LDA[:] = False
        self._free, self._arrivals = list(self._buffers), Counter()
        for plan in plans:
            used = plan.counts_LDA.any((0, 2))
            self._arrivals.update(domain for domain, is_used in zip(plan.domain_of_slot, used, strict=True) if is_used)

    def add(self, layer: int, domain: int, experts_A: np.ndarray, arrived: Sequence[np.ndarray]) -> int:
        """Adds the gradients of some experts of a slab (bool [A]); returns the bytes that crossed the link."""
        key = layer, domain
        if not self._staged and self._arrivals[domain] == 1:
            self.slabs[key] = list(arrived)
            self.received_LDA[key] |= experts_A
            return 0
        if key not in self.slabs:
            self.slabs[key] = self._buffer()
        first, again = experts_A & ~self.received_LDA[key], experts_A & self.received_LDA[key]
        self.received_LDA[key] |= experts_A
        moved = self._link.copy(self._pairs(key, first, arrived)) + self._link.add(self._pairs(key, again, arrived))
        return moved if self._staged else 0

    def add_zeros(self, experts_LDA: np.ndarray) -> int:
        """Gradients of zeros, for experts (bool [L, D, A]) that had no tokens; returns the bytes.

        A device that holds every expert has a gradient for each. Here the compiled step knows the used domains only,
        so the others come from one slab of zeros: their copy is at most cheaper than it would be from the device.
        """
        where = np.argwhere(experts_LDA.any(-1)).tolist()
        return sum(self.add(layer, domain, experts_LDA[layer, domain], self._zeros) for layer, domain in where)

    def reduce(self, activated_LDA: np.ndarray, add_up: AddUp) -> None:
        """Adds up over the ranks that have the same experts.

        Args:
            activated_LDA: bool [L, D, A], the experts that any of these ranks activated: the same on all of them.
            add_up: of a slab's gradients.
        """
        for layer, domain in np.argwhere(activated_LDA.any(-1)).tolist():
            key = layer, domain
            mine = self.slabs.get(key) or self._buffer()
            missing = runs(~self.received_LDA[key])
            if missing:
                # an array that came from a compiled function may be read-only
                mine = [gradient if gradient.flags.writeable else gradient.copy() for gradient in mine]
                for gradient in mine:
                    for rows in missing:
                        gradient[rows] = 0
            self.slabs[key] = add_up(mine)
        self.received_LDA |= activated_LDA

    @cached_property
    def _zeros(self) -> SlabGradient:
        # written, not only allocated: unwritten pages are one page of zeros in the processor's cache
        shapes = self._store.shapes.values()
        return [np.full((self._store.group_size, *shape), 0, self._device_dtype) for shape in shapes]

    def _pairs(self, key: tuple[int, int], experts_A: np.ndarray, arrived: Sequence[np.ndarray]) -> list:
        mine = self.slabs[key]
        return [
            (target[rows], source[rows])
            for target, source in zip(mine, arrived, strict=True)
            for rows in runs(experts_A)
        ]

    def _buffer(self) -> SlabGradient:
        if not self._free:
            store = self._store
            fresh = [np.zeros((store.group_size, *shape), np.float32) for shape in store.shapes.values()]
            self._buffers.append(fresh)
            self._free.append(fresh)
        return self._free.pop()
