"""Replays selected steps of the training stream in a given order, for a further round of multiple-round training.

`tiny.rounds` selects the steps. The stream has random access: a step is reproduced from the state of `Loader` before
it.
"""

from collections.abc import Sequence

from mindpangu.data.loader import Loader, LoaderState, StepBatches
from mindpangu.errors import DataError


class ReplayLoader:
    """Has the interface of `Loader`. Its state is {"round", "batch": number of batches taken, "sample": digest}.

    It is endless like a loader, because steps are prefetched: after the last step it starts over.

    Args:
        loader: the run's loader. Nothing else may use it afterwards.
        round: the round, at least 2; the first is 1.
        states: the loader's state before each of the steps, in the order of the round.
        sample: digest of the selection. A state with another digest is refused.
        begins_at: state of the checkpoint that the round starts from, which is also the state before its first step.
    """

    def __init__(
        self, loader: Loader, round: int, states: Sequence[LoaderState], sample: str, begins_at: LoaderState
    ) -> None:
        self._loader = loader
        self._round = round
        self._states = states
        self._sample = sample
        self._begins_at = begins_at
        self._taken = 0

    def next_step(self) -> StepBatches:
        """Returns the micro-batches of the next step. Raises DataError if the step's state does not fit the data."""
        self._loader.load_state(self._states[self._taken % len(self._states)])
        micro_batches = self._loader.next_step().micro_batches
        self._taken += 1
        return StepBatches(micro_batches, self.state())

    def state(self) -> LoaderState:
        """Returns the position in the round."""
        return {"round": self._round, "batch": self._taken, "sample": self._sample}

    def load_state(self, state: LoaderState) -> None:
        """Continues from a saved state. Raises DataError unless it is from this round or from just before it."""
        if state == self._begins_at:
            self._taken = 0
            return
        taken = state.get("batch")
        if state != self.state() | {"batch": taken} or type(taken) is not int or not 0 <= taken <= len(self._states):
            raise DataError(
                f"loader state {dict(state)} does not belong to round {self._round}, whose sample has "
                f"{len(self._states)} batches and the digest {self._sample}; resume with the sample that the round "
                "started with"
            )
        self._taken = taken
