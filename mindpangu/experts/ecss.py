"""ECSS, Expert Computation and Storage Separation: all experts on the host, a step's experts on the device (PanGu-Σ).

What happens during step t, where `→` is the host's thread and the rest is the training thread:

    begin            → fetch for t what step t−1 updated; then, for t+1, what step t does not touch
    lower_forward
    slabs            waits for t's experts
    upper_step
    receive          → gradients to the host, then their squared norm  (under lower_backward)
    squared_norm     waits for it; norm and skip decision, dense update
    update           → Adam on t's experts                             (under the next lower_forward)

The thread takes its work in this order, so an expert is fetched for t+1 only after its update in t, and is updated
only after its gradients of t were read. Without overlap the same calls run at once, in the same order. Gradients that
already are in the host's memory need no bringing; they are read when `squared_norm` asks for them.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from mindspore import Tensor

from mindpangu.data.route_plan import RoutePlan
from mindpangu.experts.device_slabs import StagedSlabs, StoreViews
from mindpangu.experts.gradients import AddUp, HostGradients, SlabGradient
from mindpangu.experts.npu_slabs import NpuSlabs
from mindpangu.experts.store import ExpertStore
from mindpangu.experts.traffic import ExpertTraffic, activated_experts, slab_gradients


class ECSS:
    """Moves a step's experts between store and device, and updates them, while the device computes.

    Args:
        store: all experts. Between `begin` and `finish` nobody else may read or change it.
        slabs: what the compiled step reads.
        gradients: what it leaves on the host.
        always_LDA: bool [L, D, A], experts that move and are updated in each step, activated or not (plain
            heterogeneous training); None for those alone that are activated.
        overlap: work in a thread, beside the device.
        add_up: sums a slab's gradients over the ranks that have the same experts; None if no other rank has them.
    """

    def __init__(
        self,
        store: ExpertStore,
        slabs: StoreViews | StagedSlabs | NpuSlabs,
        gradients: HostGradients,
        *,
        always_LDA: np.ndarray | None = None,
        overlap: bool = True,
        add_up: AddUp | None = None,
    ):
        self._add_up = add_up
        self._store, self._slabs, self._gradients, self._always_LDA = store, slabs, gradients, always_LDA
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ecss") if overlap else None
        self._jobs: list[Future] = []  # those whose errors nobody has seen yet
        self._ready: list[Future] = []  # what this step's slabs wait for
        self._arriving: deque[tuple[RoutePlan, Callable]] = deque()  # gradients that nobody has read yet
        self._awaited, self._norm = 0, None  # micro-batches whose gradients are to come; the norm of all, once they are
        self._announced: Sequence[RoutePlan] | None = None  # the step of which `_ahead_LDA` is fetched
        self._fetched_ahead: Future | None = None
        self._ahead_LDA = self._activated_LDA = np.zeros(store.step_counts.shape, bool)
        self._traffic = self._next_traffic = ExpertTraffic()

    def begin(self, plans: Sequence[RoutePlan], upcoming: Sequence[RoutePlan] | None = None) -> None:
        """Starts a step.

        Args:
            plans: of the step's micro-batches: their union is fetched once.
            upcoming: those of the next step, if it is known; that step is to be called with the same object.
        """
        self._raise_errors()
        self._traffic, self._next_traffic = self._next_traffic, ExpertTraffic()
        self._arriving = deque()  # a new one: a step that ended in an error may have left something
        self._awaited, self._norm = len(plans), None
        self._activated_LDA = activated_experts(plans, self._store)
        self._traffic.activated = int(self._activated_LDA.sum())
        needed_LDA = self._needed(self._activated_LDA)
        upcoming_LDA = np.zeros_like(needed_LDA)
        if upcoming is not None:
            upcoming_LDA = self._needed(activated_experts(upcoming, self._store))
        # a slot without tokens has a place as well: the compiled step takes its slab, though it does nothing with it
        domains = {domain for plan in (*plans, *(upcoming or ())) for domain in plan.domain_of_slot}
        domains.update(np.flatnonzero((needed_LDA | upcoming_LDA).any((0, 2))).tolist())
        self._submit(self._gradients.begin, plans)
        reserved = self._submit(self._slabs.reserve, domains)

        if self._announced is plans:  # its places were reserved in the step before
            self._ready = [self._fetched_ahead]
            needed_LDA = needed_LDA & ~self._ahead_LDA
        else:
            self._ready = [reserved]
        if needed_LDA.any():
            self._ready.append(self._submit(self._fetch, needed_LDA, self._traffic))
        self._announced, self._ahead_LDA = upcoming, upcoming_LDA & ~self._needed(self._activated_LDA)
        self._fetched_ahead = self._submit(self._fetch, self._ahead_LDA, self._next_traffic)

    def slabs(self, plan: RoutePlan) -> list[Tensor]:
        """A micro-batch's slabs in the order of `ExpertStore.lookup`; waits until its experts are there."""
        for job in self._ready:
            self._wait(job)
        self._submit(self._receive, self._arriving)  # the former micro-batch's
        return self._slabs.lookup(plan.domain_of_slot)

    def receive(self, plan: RoutePlan, gradients: Sequence[Tensor]) -> None:
        """Takes a micro-batch's slab gradients, in the order of `slabs`, once they are computed."""
        self._arriving.append((plan, self._slabs.to_host(gradients)))
        self._awaited -= 1
        if self._slabs.moves and self._awaited:
            self._submit(self._receive, self._arriving)
        elif self._slabs.moves and self._add_up is None:
            self._norm = self._submit(self._squared_norm, self._arriving)

    def squared_norm(self) -> float:
        """Of the sum over the step's micro-batches; waits for the gradients, and adds up what other ranks have."""
        if self._add_up is not None:
            self._wait(self._submit(self._receive, self._arriving))
            self._gradients.reduce(self._needed(self._activated_LDA), self._add_up)  # here: collectives have an order
        return self._wait(self._norm or self._submit(self._squared_norm, self._arriving))

    def gradients(self) -> dict[tuple[int, int], SlabGradient]:
        """(layer, domain id) → gradients summed over the micro-batches so far; only activated experts' rows count."""
        self._submit(self._receive, self._arriving)
        self.finish()
        return self._gradients.slabs

    def update(self, learning_rate: float, gradient_scale: float) -> None:
        """Adam on the step's experts. A step that is to be skipped leaves this out."""
        traffic = self._traffic if self._thread is None else self._next_traffic
        self._submit(self._update, self._needed(self._activated_LDA), learning_rate, gradient_scale, traffic)

    def finish(self) -> None:
        """Returns when nothing is under way: the store may be read and changed until the next `begin`."""
        self._wait(self._submit(lambda: None))
        self._raise_errors()

    @property
    def traffic(self) -> ExpertTraffic:
        """Of the step that `begin` started; complete after `squared_norm`."""
        return self._traffic

    def _needed(self, activated_LDA: np.ndarray) -> np.ndarray:
        return activated_LDA if self._always_LDA is None else self._always_LDA

    def _fetch(self, experts_LDA: np.ndarray, traffic: ExpertTraffic) -> None:
        started = time.perf_counter()
        traffic.bytes_to_device += self._slabs.fetch(experts_LDA)
        traffic.lookup_s += time.perf_counter() - started

    def _receive(self, arriving: deque[tuple[RoutePlan, Callable]]) -> None:
        while arriving:
            plan, bring = arriving.popleft()
            for layer, domain, experts_A, arrays in slab_gradients(plan, bring()):
                self._traffic.bytes_to_host += self._gradients.add(layer, domain, experts_A, arrays)
            if self._always_LDA is not None:
                idle_LDA = self._always_LDA & ~activated_experts((plan,), self._store)
                self._traffic.bytes_to_host += self._gradients.add_zeros(idle_LDA)

    def _squared_norm(self, arriving: deque[tuple[RoutePlan, Callable]]) -> float:
        self._receive(arriving)
        return self._store.squared_norm(self._gradients.slabs, self._gradients.received_LDA)

    def _update(self, experts_LDA: np.ndarray, learning_rate: float, scale: float, traffic: ExpertTraffic) -> None:
        started = time.perf_counter()
        self._store.update(self._gradients.slabs, experts_LDA, learning_rate, scale)
        traffic.update_s += time.perf_counter() - started

    def _submit(self, work: Callable, *arguments) -> Future:
        started = time.perf_counter()
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

    def _wait(self, job: Future):
        started = time.perf_counter()
        result = job.result()
        self._traffic.wait_s += time.perf_counter() - started
        return result

    def _raise_errors(self) -> None:
        """The error of work that nobody waited for."""
        unfinished = [job for job in self._jobs if not job.done()]
        finished, self._jobs = [job for job in self._jobs if job.done()], unfinished
        for job in finished:
            job.result()
