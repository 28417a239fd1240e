"""Chosen steps of the training stream once more, in a given order: what a further round of a training consists of.

Which steps these are is decided in `tiny.rounds`. The stream is random access, so a step is made again from the state
that `Loader` had before it.
"""

from collections.abc import Sequence

from mindpangu.data.loader import Loader, LoaderState, StepBatches
from mindpangu.errors import DataError


class ReplayLoader:
    """Has the interface of `Loader`; its state is {"round", "batch": batches taken, "sample": digest}.

    It is as endless as a loader, which is asked for more than is trained on: after the last step comes the first.

    Args:
        loader: the run's own, which this one takes over.
        round: number of the round, from 2.
        states: the loader's states before each of the steps, in the order of the round.
        sample: digest of the choice; a state of another one is refused.
        begins_at: the state of the checkpoint that the round goes on from, which is its first state as well.
    """

    def __init__(self, loader: Loader, round: int, states: Sequence[LoaderState], sample: str, begins_at: LoaderState):
        self._loader, self._round, self._states, self._sample = loader, round, states, sample
        self._begins_at, self._taken = begins_at, 0

    def next_step(self) -> StepBatches:
        """The micro-batches of the next step; moves the state past it. Raises DataError for a state of other data."""
        self._loader.load_state(self._states[self._taken % len(self._states)])
        micro_batches = self._loader.next_step().micro_batches
        self._taken += 1
        return StepBatches(micro_batches, self.state())

    def state(self) -> LoaderState:
        """Where the round stands."""
        return {"round": self._round, "batch": self._taken, "sample": self._sample}

    def load_state(self, state: LoaderState) -> None:
        """Goes on where `state` was taken. Raises DataError if that was neither in this round nor right before it."""
        if state == self._begins_at:
            self._taken = 0
            return
        taken = state.get("batch")
        if state != self.state() | {"batch": taken} or type(taken) is not int or not 0 <= taken <= len(self._states):
            raise DataError(
                f"loader state {dict(state)} is not one of round {self._round}, whose sample has {len(self._states)} "
                f"batches and the digest {self._sample}; resume with the sample that the round began with"
            )
        self._taken = taken
