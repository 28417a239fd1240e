"""Gradients of a step's experts on the host, summed over domain slots and micro-batches."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from mindpangu.data.route_plan import RoutePlan
from mindpangu.experts.link import Link, Pairs
from mindpangu.experts.store import ExpertStore, runs

SlabGradient = list[np.ndarray]
"""The gradients of a slab, in the order of `ExpertStore.tensors`."""
AllReduce = Callable[[SlabGradient], SlabGradient]
"""Sums a slab's gradients over the ranks that hold the same experts; all of them must call it."""


class HostGradients:
    """One gradient for each slab in use.

    Attributes:
        slabs: (layer, domain id) → the slab's gradients, float32. Rows of experts whose gradients have not arrived must
            not be read.
        received_LMA: bool [L, M, A], the experts whose gradients have arrived.

    Args:
        device_dtype: dtype of gradients that come from device memory and are always copied. None if they are already in
            host memory: then gradients that need no summation are used in place.
    """

    def __init__(self, store: ExpertStore, link: Link, device_dtype: type | None = None):
        self._store = store
        self._link = link
        self._device_dtype = device_dtype
        self._staged = device_dtype is not None
        self.slabs: dict[tuple[int, int], SlabGradient] = {}
        self.received_LMA = np.zeros(store.step_counts.shape, bool)
        self._arrivals: Counter[int] = Counter()
        self._buffers: list[SlabGradient] = []
        self._free: list[SlabGradient] = []

    def begin(self, plans: Sequence[RoutePlan]) -> None:
        """Drops the previous step's gradients and prepares for those of new micro-batches."""
        self.slabs = {}
        self.received_LMA[:] = False
        self._free = list(self._buffers)
        self._arrivals = Counter()
        for plan in plans:
            used = plan.counts_LDA.any((0, 2))
            self._arrivals.update(domain for domain, is_used in zip(plan.domain_of_slot, used, strict=True) if is_used)

    def add(self, layer: int, domain: int, experts_A: np.ndarray, arrived: Sequence[np.ndarray]) -> int:
        """Adds the gradients of some experts of a slab; returns the number of bytes that crossed the link.

        Args:
            experts_A: bool [A], the experts whose gradients arrive.
            arrived: the slab's gradients.
        """
        key = (layer, domain)
        if not self._staged and self._arrivals[domain] == 1:
            self.slabs[key] = list(arrived)
            self.received_LMA[key] |= experts_A
            return 0
        if key not in self.slabs:
            self.slabs[key] = self._buffer()
        first_A = experts_A & ~self.received_LMA[key]
        again_A = experts_A & self.received_LMA[key]
        self.received_LMA[key] |= experts_A
        copied = self._link.copy(self._pairs(key, first_A, arrived))
        added = self._link.add(self._pairs(key, again_A, arrived))
        return copied + added if self._staged else 0

    def add_zeros(self, experts_LMA: np.ndarray) -> int:
        """Adds zeros for experts (bool [L, M, A]) that had no tokens; returns the number of bytes.

        A device that holds every expert has a gradient for each. Here the compiled step has only the used domains, so
        the other gradients come from one slab of zeros, which costs no more to copy than a slab on the device.
        """
        slabs = np.argwhere(experts_LMA.any(-1)).tolist()
        return sum(self.add(layer, domain, experts_LMA[layer, domain], self._zeros) for layer, domain in slabs)

    def reduce(self, activated_LMA: np.ndarray, all_reduce: AllReduce) -> None:
        """Sums the gradients over the ranks that hold the same experts.

        Args:
            activated_LMA: bool [L, M, A], the experts that any of these ranks activated; the same on all of them.
            all_reduce: sums one slab.
        """
        for layer, domain in np.argwhere(activated_LMA.any(-1)).tolist():
            key = (layer, domain)
            mine = self.slabs.get(key) or self._buffer()
            missing = runs(~self.received_LMA[key])
            if missing:
                # an array that came from a compiled function may be read-only
                mine = [gradient if gradient.flags.writeable else gradient.copy() for gradient in mine]
                for gradient in mine:
                    for rows in missing:
                        gradient[rows] = 0
            self.slabs[key] = all_reduce(mine)
        self.received_LMA |= activated_LMA

    @cached_property
    def _zeros(self) -> SlabGradient:
        # np.full writes all pages: unwritten ones would share one page of zeros, which stays in the cache
        shapes = self._store.shapes.values()
        return [np.full((self._store.group_size, *shape), 0, self._device_dtype) for shape in shapes]

    def _pairs(self, key: tuple[int, int], experts_A: np.ndarray, arrived: Sequence[np.ndarray]) -> Pairs:
        """Returns (target, source) rows of some experts of a slab, for the link."""
        mine = self.slabs[key]
        return [
            (target[rows], source[rows])
            for target, source in zip(mine, arrived, strict=True)
            for rows in runs(experts_A)
        ]

    def _buffer(self) -> SlabGradient:
        if not self._free:
            store = self._store
            buffer = [np.zeros((store.group_size, *shape), np.float32) for shape in store.shapes.values()]
            self._buffers.append(buffer)
            self._free.append(buffer)
        return self._free.pop()
