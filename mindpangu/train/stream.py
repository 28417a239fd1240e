"""The stream of planned steps: loader and route plan run in a thread, ahead of the step that uses them."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from mindpangu.data import Loader, LoaderState, ReplayLoader
from mindpangu.data.step_plan import StepPlan
from mindpangu.language_model import LanguageModel

_AHEAD = 2


@dataclass(frozen=True)
class PlannedStep:
    """One rank's step, and the loader's state after it (what a checkpoint saves)."""

    plan: StepPlan
    loader_state: LoaderState


class StepStream:
    """Yields PlannedSteps without end. Only its own thread touches the loader."""

    def __init__(self, loader: Loader | ReplayLoader, model: LanguageModel):
        self._loader, self._model = loader, model
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._queue: deque[Future[PlannedStep]] = deque(self._thread.submit(self._make) for _ in range(_AHEAD))

    def next(self) -> PlannedStep:
        self._queue.append(self._thread.submit(self._make))
        return self._queue.popleft().result()

    def peek(self) -> PlannedStep:
        """What `next` will return; waits until it is planned."""
        return self._queue[0].result()

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _make(self) -> PlannedStep:
        step = self._loader.next_step()
        return PlannedStep(self._model.plan_step(step.micro_batches), step.next_state)
