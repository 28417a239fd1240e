"""Mode `device`: all experts stay in the memory that the step computes from. Nothing moves, nothing overlaps.

It has the methods of `ECSS` in their simplest form; tests compare ECSS with it.
"""

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor

from mindpangu.data.route_plan import RoutePlan
from mindpangu.experts.gradients import AllReduce, SlabGradient
from mindpangu.experts.store import ExpertStore
from mindpangu.experts.traffic import ExpertTraffic, activated_experts, slab_gradients


class ResidentExperts:
    """All experts on the device; see `ECSS` for the methods.

    Args:
        dtype: dtype of the computation; the store holds float32.
        all_reduce: see `ECSS`.
    """

    moves = False

    def __init__(self, store: ExpertStore, dtype: type = np.float32, all_reduce: AllReduce | None = None):
        self._store = store
        self._dtype = dtype
        self._all_reduce = all_reduce
        self._gradients: dict[tuple[int, int], SlabGradient] = {}
        self._activated_LMA = np.zeros(store.step_counts.shape, bool)
        self.traffic = ExpertTraffic()

    def begin(self, plans: Sequence[RoutePlan], upcoming: Sequence[RoutePlan] | None = None) -> None:
        self._gradients = {}
        self._activated_LMA = activated_experts(plans, self._store)
        self.traffic = ExpertTraffic(activated=int(self._activated_LMA.sum()))

    def slabs(self, plan: RoutePlan) -> list[Tensor]:
        with np.errstate(over="ignore"):
            slabs: list[np.ndarray] = [
                slab.astype(self._dtype, copy=False) for slab in self._store.lookup(plan.domain_of_slot)
            ]
        return [Tensor.from_numpy(slab) for slab in slabs]

    def receive(self, plan: RoutePlan, gradients: Sequence[Tensor]) -> None:
        on_host = [gradient.asnumpy().astype(np.float32, copy=False) for gradient in gradients]
        for layer, domain, _, arrays in slab_gradients(plan, on_host):
            earlier = self._gradients.get((layer, domain))
            if earlier is not None:
                with np.errstate(over="ignore", invalid="ignore"):
                    arrays = [total + array for total, array in zip(earlier, arrays, strict=True)]
            self._gradients[layer, domain] = list(arrays)

    def squared_norm(self) -> float:
        if self._all_reduce is not None:
            for layer, domain in np.argwhere(self._activated_LMA.any(-1)).tolist():
                zeros = [np.zeros_like(self._store.weights[layer][domain][name]) for name in self._store.tensors]
                self._gradients[layer, domain] = self._all_reduce(self._gradients.get((layer, domain), zeros))
        return self._store.squared_norm(self._gradients, self._activated_LMA)

    def gradients(self) -> dict[tuple[int, int], SlabGradient]:
        return self._gradients

    def update(self, learning_rate: float, gradient_scale: float) -> None:
        self._store.update(self._gradients, self._activated_LMA, learning_rate, gradient_scale)

    def finish(self) -> None: ...
