"""Streams planned steps: loader and planner run in a thread, ahead of training."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from mindpangu.data import Loader, LoaderState, ReplayLoader
from mindpangu.data.step_planner import StepPlan, StepPlanner

_STEPS_AHEAD = 2


@dataclass(frozen=True)
class PlannedStep:
    """One rank's share of a step, and the loader's state after the step, which a checkpoint saves."""

    plan: StepPlan
    loader_state: LoaderState


class StepStream:
    """Endless stream of PlannedSteps. Only its own thread touches the loader."""

    def __init__(self, loader: Loader | ReplayLoader, planner: StepPlanner):
        self._loader = loader
        self._planner = planner
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._queue: deque[Future[PlannedStep]] = deque(self._thread.submit(self._make) for _ in range(_STEPS_AHEAD))

    def next(self) -> PlannedStep:
        """Returns the next step; waits until it is planned."""
        self._queue.append(self._thread.submit(self._make))
        return self._queue.popleft().result()

    def peek(self) -> PlannedStep:
        """Returns the step that `next` will return; waits until it is planned."""
        return self._queue[0].result()

    def close(self) -> None:
        """Stops the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _make(self) -> PlannedStep:
        step = self._loader.next_step()
        return PlannedStep(self._planner.plan_step(step.micro_batches), step.next_state)
