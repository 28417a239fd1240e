"""Watching the other ranks: whoever fails, dies or hangs ends all of them, and is named.

A collective that waits for a dead rank waits forever, and no exception comes of it. So each rank tells in a file of the
run's folder what it is doing, and a thread looks at the files of the others. What it finds it prints, and ends its
process: with the error that came first, not with what followed from it.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from mindpangu.errors import MindPanguError

_INTERVAL_S = 0.5
_SILENT_S = 60.0  # a rank whose file is older is lost; a shared file system may show it late


class Watch:
    """Context manager around what the ranks do together.

        with Watch(folder, rank, ranks, timeout=1800) as watch:
            watch.now(step=17, doing="the sum of the dense gradients")

    Args:
        folder: of this job, on a file system that all ranks see; empty or of an ended job.
        rank, ranks: of this process.
        timeout: seconds that a rank may take for one thing.
        end: how to end the process.
    """

    def __init__(self, folder: Path, rank: int, ranks: int, timeout: float, end: Callable[[int], None] = os._exit):
        self._folder, self._rank, self._ranks, self._timeout, self._end = folder, rank, ranks, timeout, end
        self._state = {"host": socket.gethostname(), "pid": os.getpid(), "step": 0, "doing": "the start"}
        self._since, self._seen = time.monotonic(), dict.fromkeys(range(ranks), (0.0, time.monotonic()))
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def now(self, step: int | None = None, doing: str | None = None) -> None:
        """What this rank does from now on."""
        with self._lock:
            self._since = time.monotonic()
            if step is not None:
                self._state["step"] = step
            if doing is not None:
                self._state["doing"] = doing

    def __enter__(self) -> "Watch":
        if self._ranks > 1:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._tell()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._ranks == 1:
            return
        self._over.set()
        self._thread.join()
        self._tell(ended=True, error=None if kind is None else f"{kind.__name__}: {error}")
        if isinstance(error, MindPanguError):
            # MindSpore's engine would wait for the other ranks when the interpreter ends
            self._finish(str(error))

    def _look(self) -> None:
        while not self._over.wait(_INTERVAL_S):
            self._tell()
            problem = self._own_problem() or next(filter(None, map(self._problem_of, range(self._ranks))), None)
            if problem and not self._over.is_set():
                self._tell(ended=True, error=f"ended, because {problem}")
                self._finish(problem)

    def _finish(self, problem: str) -> None:
        print(f"mindpangu: error: rank {self._rank}: {problem}", file=sys.stderr, flush=True)
        self._end(1)

    def _own_problem(self) -> str | None:
        with self._lock:
            taken, doing, step = time.monotonic() - self._since, self._state["doing"], self._state["step"]
        if taken <= self._timeout:
            return None
        return (
            f"{doing} in step {step} takes longer than {self._timeout:.0f} s (parallelism.timeout); a rank that does "
            "not come, or ranks that do not agree"
        )

    def _problem_of(self, rank: int) -> str | None:
        """What is wrong with another rank, if anything is."""
        if rank == self._rank:
            return None
        try:
            state = json.loads(self._file(rank).read_text())
        except (OSError, ValueError):
            return None  # it has not begun; whoever waits for it has a time-out
        where = f"rank {rank} on {state['host']}"
        last = f"its last step was {state['step']}, doing {state['doing']}"
        if state.get("error"):
            return None if state["error"].startswith("ended, because") else f"{where} failed: {state['error']} ({last})"
        if state.get("ended"):
            return None
        if state["host"] == self._state["host"] and not _lives(state["pid"]):
            return f"{where} (process {state['pid']}) is dead; {last}"
        beat, since = self._seen[rank]
        if state["beat"] != beat:
            self._seen[rank] = state["beat"], time.monotonic()
        elif time.monotonic() - since > _SILENT_S:
            return f"{where} has not been heard of for {_SILENT_S:.0f} s; {last}"
        return None

    def _tell(self, ended: bool = False, error: str | None = None) -> None:
        with self._lock:
            state = self._state | {"beat": time.time(), "ended": ended, "error": error}
        part = self._file(self._rank).with_suffix(".part")
        with contextlib.suppress(OSError):  # a full disk is the checkpoint's to complain about
            part.write_text(json.dumps(state))
            part.replace(self._file(self._rank))

    def _file(self, rank: int) -> Path:
        return self._folder / f"rank_{rank}.json"


def _lives(pid: int) -> bool:
    """Whether a process of this machine lives; one that ended and was not waited for does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False
