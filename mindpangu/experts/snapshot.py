"""StoreSnapshot: the state of all experts at one moment, readable while training changes them.

Taking a snapshot copies nothing. An update copies an expert first if it has not been read yet (copy on write), so the
snapshot takes memory only for the experts that are updated meanwhile.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from mindpangu.experts.store import ExpertStore

Expert = tuple[int, int, int]
"""(layer, domain id, index in the store)"""


class StoreSnapshot:
    """The state of all experts between two updates. `read` or `release` each once, from any thread; then `close`.

    A store has one snapshot at a time. None may be taken while an update runs.

    Attributes:
        step_counts: int64 [L, M, A], the step counts in the snapshot.
        copies: expert → copies of its tensors, for experts that were updated before they were read.
    """

    def __init__(self, store: ExpertStore):
        self.step_counts = store.step_counts.copy()
        self.copies: dict[Expert, dict[str, np.ndarray]] = {}
        self._store = store
        # experts not yet read; an expert's lock is held by its reader or by the update that copies it
        self._unread = {expert: threading.Lock() for expert in store.experts()}
        store.before_update = self._copy

    @contextmanager
    def read(self, expert: Expert) -> Iterator[Mapping[str, np.ndarray]]:
        """Yields the weights and Adam moments of an expert by their names in its file, then releases the expert.

        They must not be used after the block. An update of this expert waits until the block ends.
        """
        with self._unread[expert]:
            yield self.copies.get(expert) or self._tensors(expert)
            del self._unread[expert]
            self.copies.pop(expert, None)

    def release(self, expert: Expert) -> None:
        """Releases an expert that need not be read."""
        with self.read(expert):
            pass

    def close(self) -> None:
        """Detaches the snapshot from the store and releases the experts that were not read."""
        self._store.before_update = None
        for expert in list(self._unread):
            self.release(expert)

    def _copy(self, layer: int, domain: int, expert_indices: np.ndarray) -> None:
        """Copies experts that have not been read; the store calls this before it changes them."""
        for index in expert_indices.tolist():
            expert = (layer, domain, index)
            lock = self._unread.get(expert)
            if lock is None:
                continue
            with lock:
                if expert in self._unread and expert not in self.copies:
                    self.copies[expert] = {name: tensor.copy() for name, tensor in self._tensors(expert).items()}

    def _tensors(self, expert: Expert) -> dict[str, np.ndarray]:
        layer, domain, index = expert
        groups = {"": self._store.weights, "adam_m.": self._store.moment1, "adam_v.": self._store.moment2}
        return {
            prefix + name: group[layer][domain][name][index]
            for prefix, group in groups.items()
            for name in self._store.tensors
        }
