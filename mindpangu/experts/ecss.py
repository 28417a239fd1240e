"""ECSS, Expert Computation and Storage Separation: all experts on the host, a step's experts on the device (PanGu-Σ).

During step t, the training thread makes these calls; `→` marks the work of the host thread:

    begin            → fetch for t the experts that step t−1 updated; then, for t+1, those that step t does not use
    lower_forward
    slabs            waits for t's experts
    upper_step
    receive          → gradients to the host, then their squared norm  (under lower_backward)
    squared_norm     waits for it; norm and skip decision, dense update
    update           → Adam on t's experts                             (under the next lower_forward)

The host thread works in this order, so an expert is fetched for t+1 only after its update in t, and is updated only
after its gradients of t have been read. Without overlap the same work runs immediately, in the same order. Gradients
that are already in host memory need not be moved; they are read when `squared_norm` needs them.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from mindspore import Tensor

from mindpangu.data.route_plan import RoutePlan
from mindpangu.experts.device_slabs import StagedSlabs, StoreViews
from mindpangu.experts.gradients import AllReduce, HostGradients, SlabGradient
from mindpangu.experts.npu_slabs import NpuSlabs
from mindpangu.experts.store import ExpertStore
from mindpangu.experts.traffic import ExpertTraffic, activated_experts, slab_gradients

ReadArrays = Callable[[], list[np.ndarray]]
"""Returns a micro-batch's slab gradients as arrays on the host."""


class ECSS:
    """Moves a step's experts between store and device, and updates them, while the device computes.

    Args:
        store: all experts. Between `begin` and `finish` no other code may read or change it.
        slabs: the experts as the compiled step reads them.
        gradients: the gradients of the experts on the host.
        always_LMA: bool [L, M, A], experts that move and are updated in each step, activated or not (plain
            heterogeneous training); None to move and update activated experts only.
        overlap: work in a thread while the device computes.
        all_reduce: sums a slab's gradients over the ranks that hold the same experts; None if no other rank holds them.
    """

    def __init__(
        self,
        store: ExpertStore,
        slabs: StoreViews | StagedSlabs | NpuSlabs,
        gradients: HostGradients,
        *,
        always_LMA: np.ndarray | None = None,
        overlap: bool = True,
        all_reduce: AllReduce | None = None,
    ):
        self._store = store
        self._slabs = slabs
        self._gradients = gradients
        self._always_LMA = always_LMA
        self._all_reduce = all_reduce
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ecss") if overlap else None
        self._jobs: list[Future[Any]] = []  # jobs whose errors have not been checked yet
        self._ready: list[Future[Any]] = []  # jobs that this step's slabs wait for
        self._arriving: deque[tuple[RoutePlan, ReadArrays]] = deque()  # gradients not read yet
        self._num_outstanding = 0  # micro-batches whose gradients have not arrived
        self._norm: Future[Any] | None = None  # set once all gradients of the step have arrived
        self._announced: Sequence[RoutePlan] | None = None  # the step for which `_ahead_LMA` is fetched
        self._fetched_ahead: Future[Any] | None = None
        self._ahead_LMA = np.zeros(store.step_counts.shape, bool)
        self._activated_LMA = np.zeros(store.step_counts.shape, bool)
        self._traffic = ExpertTraffic()
        self._next_traffic = self._traffic

    def begin(self, plans: Sequence[RoutePlan], upcoming: Sequence[RoutePlan] | None = None) -> None:
        """Starts a step.

        Args:
            plans: the plans of the step's micro-batches; an expert that several of them need is fetched once.
            upcoming: the plans of the next step, if known; the next `begin` must get the same object.
        """
        self._raise_errors()
        self._traffic = self._next_traffic
        self._next_traffic = ExpertTraffic()
        self._arriving = deque()  # a new one: a step that failed may have left something in the old one
        self._num_outstanding = len(plans)
        self._norm = None
        self._activated_LMA = activated_experts(plans, self._store)
        self._traffic.activated = int(self._activated_LMA.sum())
        needed_LMA = self._needed(self._activated_LMA)
        upcoming_LMA = np.zeros_like(needed_LMA)
        if upcoming is not None:
            upcoming_LMA = self._needed(activated_experts(upcoming, self._store))
        # a slot without tokens needs buffers too: the compiled step takes its slab, though it does nothing with it
        domains = {domain for plan in (*plans, *(upcoming or ())) for domain in plan.domain_of_slot}
        domains.update(np.flatnonzero((needed_LMA | upcoming_LMA).any((0, 2))).tolist())
        self._submit(self._gradients.begin, plans)
        reserved = self._submit(self._slabs.reserve, domains)

        if self._announced is plans and self._fetched_ahead is not None:  # reserved in the previous step
            self._ready = [self._fetched_ahead]
            needed_LMA = needed_LMA & ~self._ahead_LMA
        else:
            self._ready = [reserved]
        if needed_LMA.any():
            self._ready.append(self._submit(self._fetch, needed_LMA, self._traffic))
        self._announced = upcoming
        self._ahead_LMA = upcoming_LMA & ~self._needed(self._activated_LMA)
        self._fetched_ahead = self._submit(self._fetch, self._ahead_LMA, self._next_traffic)

    def slabs(self, plan: RoutePlan) -> list[Tensor]:
        """Returns a micro-batch's slabs in the order of `ExpertStore.lookup`; waits until its experts have arrived."""
        for job in self._ready:
            self._wait(job)
        self._submit(self._receive, self._arriving)  # of the previous micro-batch
        return self._slabs.lookup(plan.domain_of_slot)

    def receive(self, plan: RoutePlan, gradients: Sequence[Tensor]) -> None:
        """Takes a micro-batch's slab gradients, in the order of `slabs`, once they are computed."""
        self._arriving.append((plan, self._slabs.to_host(gradients)))
        self._num_outstanding -= 1
        if self._slabs.moves and self._num_outstanding:
            self._submit(self._receive, self._arriving)
        elif self._slabs.moves and self._all_reduce is None:
            self._norm = self._submit(self._squared_norm, self._arriving)

    def squared_norm(self) -> float:
        """Waits for the step's gradients, summed over micro-batches and replicas, and returns their squared norm."""
        if self._all_reduce is not None:
            self._wait(self._submit(self._receive, self._arriving))
            # in this thread: all ranks must call their collectives in the same order
            self._gradients.reduce(self._needed(self._activated_LMA), self._all_reduce)
        return self._wait(self._norm or self._submit(self._squared_norm, self._arriving))

    def gradients(self) -> dict[tuple[int, int], SlabGradient]:
        """Returns (layer, domain id) → gradients, summed over the micro-batches so far.

        Only the rows of activated experts are valid.
        """
        self._submit(self._receive, self._arriving)
        self.finish()
        return self._gradients.slabs

    def update(self, learning_rate: float, gradient_scale: float) -> None:
        """Applies Adam to the step's experts. Must not be called for a skipped step."""
        traffic = self._traffic if self._thread is None else self._next_traffic
        self._submit(self._update, self._needed(self._activated_LMA), learning_rate, gradient_scale, traffic)

    def finish(self) -> None:
        """Waits for all work. Until the next `begin`, the store may then be read and changed."""
        self._wait(self._submit(lambda: None))
        self._raise_errors()

    @property
    def moves(self) -> bool:
        """True if experts are copied to a device; False if the compiled step reads the store itself."""
        return self._slabs.moves

    @property
    def traffic(self) -> ExpertTraffic:
        """Costs of the step that `begin` started; complete after `squared_norm`."""
        return self._traffic

    def _needed(self, activated_LMA: np.ndarray) -> np.ndarray:
        return activated_LMA if self._always_LMA is None else self._always_LMA

    def _fetch(self, experts_LMA: np.ndarray, traffic: ExpertTraffic) -> None:
        started = time.perf_counter()
        traffic.bytes_to_device += self._slabs.fetch(experts_LMA)
        traffic.lookup_s += time.perf_counter() - started

    def _receive(self, arriving: deque[tuple[RoutePlan, ReadArrays]]) -> None:
        while arriving:
            plan, read_arrays = arriving.popleft()
            for layer, domain, experts_A, arrays in slab_gradients(plan, read_arrays()):
                self._traffic.bytes_to_host += self._gradients.add(layer, domain, experts_A, arrays)
            if self._always_LMA is not None:
                idle_LMA = self._always_LMA & ~activated_experts((plan,), self._store)
                self._traffic.bytes_to_host += self._gradients.add_zeros(idle_LMA)

    def _squared_norm(self, arriving: deque[tuple[RoutePlan, ReadArrays]]) -> float:
        self._receive(arriving)
        return self._store.squared_norm(self._gradients.slabs, self._gradients.received_LMA)

    def _update(self, experts_LMA: np.ndarray, learning_rate: float, scale: float, traffic: ExpertTraffic) -> None:
        started = time.perf_counter()
        self._store.update(self._gradients.slabs, experts_LMA, learning_rate, scale)
        traffic.update_s += time.perf_counter() - started

    def _submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Runs work in the thread, or immediately if there is none."""
        started = time.perf_counter()
        job: Future[Any]
        if self._thread is not None:
            job = self._thread.submit(work, *arguments)
        else:
            job = Future()
            try:
                job.set_result(work(*arguments))
            except Exception as error:
                job.set_exception(error)
        self._traffic.wait_s += time.perf_counter() - started
        self._jobs.append(job)
        return job

    def _wait(self, job: Future[Any]) -> Any:
        started = time.perf_counter()
        result = job.result()
        self._traffic.wait_s += time.perf_counter() - started
        return result

    def _raise_errors(self) -> None:
        """Raises the errors of finished jobs that nothing waited for."""
        # a job that ends between these two lines is in both lists: its error is raised, not lost
        unfinished = [job for job in self._jobs if not job.done()]
        finished = [job for job in self._jobs if job.done()]
        self._jobs = unfinished
        for job in finished:
            job.result()
