"""Watches the other ranks: if one fails, dies, or hangs, all of them end, and the message names it.

A collective that waits for a dead rank waits forever and raises no exception. So a small process next to each rank
(`watcher`) publishes what its rank is doing and reads what the others are doing. When it finds a problem, it prints the
error that came first, not those that followed from it, and ends its rank.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import IO

from mindpangu.errors import InUseError, MindPanguError, ParallelError
from mindpangu.locks import delete, locked
from mindpangu.parallel import watcher

_SILENT_S = 60.0
_WATCHER_EXIT_S = 10.0
_MAX_ERROR_LENGTH = 500  # keeps an escaped line below 4,096 bytes, which a pipe writes completely or not at all

JOB = re.compile(r"job-[0-9a-f]{16}")
"""Pattern of the name that the ranks of a job share (`Processes.draw_shared_name`) and that their folder has."""


def remove_earlier_jobs(folder: Path) -> None:
    """Removes the folders of jobs that have ended, and nothing else, from the folder of watch files.

    Raises:
        ParallelError: the folder is a link, as in a run folder from elsewhere, and may lead to anything.
    """
    if folder.is_symlink():
        raise ParallelError(f"{folder} is a link, and mindpangu would delete files behind it; remove the link")
    for earlier in folder.glob("job-*"):
        if JOB.fullmatch(earlier.name) and not earlier.is_symlink():
            with contextlib.suppress(InUseError), locked(earlier, wait=0):
                delete(earlier)


class Watch:
    """Context manager around the joint work of the ranks.

        with Watch(folder, rank, ranks, timeout=1800) as watch:
            watch.report_status(step=17, doing="the sum of the dense gradients")

    For the arguments see `watcher.Watcher`.
    """

    def __init__(self, folder: Path, rank: int, ranks: int, timeout: float, silent: float = _SILENT_S):
        self._folder = folder
        self._rank = rank
        self._ranks = ranks
        self._arguments = [folder, rank, ranks, timeout, silent, os.getpid()]
        self._watcher: subprocess.Popen | None = None
        self._pipe: IO[bytes] | None = None

    def report_status(self, step: int | None = None, doing: str | None = None) -> None:
        """Tells the watcher what this rank is doing from now on."""
        news = {"step": step, "doing": doing}
        self._send({key: value for key, value in news.items() if value is not None})

    def __enter__(self) -> "Watch":
        if self._ranks > 1:
            self._folder.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, watcher.__file__, *map(str, self._arguments)]
            # in a new session: Ctrl-C must end only the rank, so that the watcher can publish the rank's last state
            self._watcher = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
            self._pipe = self._watcher.stdin
            assert self._pipe is not None
            os.set_blocking(self._pipe.fileno(), False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._watcher is None or self._pipe is None:
            return
        self._send({"ended": True, "error": None if kind is None else f"{kind.__name__}: {error}"[:_MAX_ERROR_LENGTH]})
        self._pipe.close()
        self._pipe = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._watcher.wait(_WATCHER_EXIT_S)
        self._watcher = None
        if isinstance(error, MindPanguError):
            # a normal exit would let MindSpore's engine wait for the other ranks
            print(f"mindpangu: error: rank {self._rank}: {error}", file=sys.stderr, flush=True)
            os._exit(1)

    def _send(self, news: dict[str, object]) -> None:
        if self._pipe is not None:
            # a watcher that was killed, or that is stopped and does not read, must neither end nor block the rank
            with contextlib.suppress(BrokenPipeError, BlockingIOError):
                os.write(self._pipe.fileno(), json.dumps(news).encode() + b"\n")
