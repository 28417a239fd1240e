"""StoreSnapshot: all experts as they stand at one moment, readable while training changes them.

Nothing is copied when it is taken. An update that comes before an expert was read copies that expert first, so memory
grows by the experts that updates touch meanwhile, and by no more. Who reads, and to what end, is decided above.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from mindpangu.experts.store import ExpertStore

Where = tuple[int, int, int]


class StoreSnapshot:
    """The state of every expert between two updates; `read` or `release` each once, from any threads, then `close`.

    A store has one snapshot at a time, and none may be taken while an update runs.

    Attributes:
        step_counts: int64 [L, D, A], as they were.
        copies: (layer, domain id, index) → tensors of the experts that were updated before they were read.
    """

    def __init__(self, store: ExpertStore):
        self.step_counts = store.step_counts.copy()
        self.copies: dict[Where, dict[str, np.ndarray]] = {}
        self._store = store
        # who is in here has not been read; the lock is held by its reader or by the update that copies it
        self._unread = {where: threading.Lock() for where in store.experts()}
        store.before_update = self._copy

    @contextmanager
    def read(self, where: Where) -> Iterator[Mapping[str, np.ndarray]]:
        """Weights and Adam moments of an expert, under their names in its file.

        They must not be used after the block, which an update of this expert waits for. Then the expert is let go.
        """
        with self._unread[where]:
            yield self.copies.get(where) or self._tensors(where)
            del self._unread[where]
            self.copies.pop(where, None)

    def release(self, where: Where) -> None:
        """Lets go of an expert that nobody has to read."""
        with self.read(where):
            pass

    def close(self) -> None:
        """Lets go of the store, and of the experts that were not read."""
        self._store.before_update = None
        for where in list(self._unread):
            self.release(where)

    def _copy(self, layer: int, domain: int, expert_indices: np.ndarray) -> None:
        """What the store calls before it changes experts."""
        for index in expert_indices.tolist():
            where = (layer, domain, index)
            lock = self._unread.get(where)
            if lock is None:
                continue
            with lock:
                if where in self._unread and where not in self.copies:
                    self.copies[where] = {name: tensor.copy() for name, tensor in self._tensors(where).items()}

    def _tensors(self, where: Where) -> dict[str, np.ndarray]:
        layer, domain, index = where
        groups = {"": self._store.weights, "adam_m.": self._store.moment1, "adam_v.": self._store.moment2}
        return {
            prefix + name: group[layer][domain][name][index]
            for prefix, group in groups.items()
            for name in self._store.tensors
        }
