"""Watching the other ranks: whoever fails, dies or hangs ends all of them, and is named.

A collective that waits for a dead rank waits forever, and no exception comes of it. So each rank has a process beside
it (`watcher`), which tells the others what the rank does and looks at what they do. What it finds it prints, and ends
the rank: with the error that came first, not with what followed from it.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from mindpangu.errors import MindPanguError
from mindpangu.parallel import watcher

_SILENT_S = 60.0
_LAST_WORDS_S = 10.0
_LONGEST_ERROR = 500  # escaped, a line is below the 4,096 bytes that a pipe takes whole or not at all


class Watch:
    """Context manager around what the ranks do together.

        with Watch(folder, rank, ranks, timeout=1800) as watch:
            watch.report_status(step=17, doing="the sum of the dense gradients")

    Args: see `watcher.Watcher`.
    """

    def __init__(self, folder: Path, rank: int, ranks: int, timeout: float, silent: float = _SILENT_S):
        self._folder, self._rank, self._ranks = folder, rank, ranks
        self._arguments = [folder, rank, ranks, timeout, silent, os.getpid()]
        self._watcher: subprocess.Popen | None = None

    def report_status(self, step: int | None = None, doing: str | None = None) -> None:
        """What this rank does from now on."""
        news = {"step": step, "doing": doing}
        self._log({key: value for key, value in news.items() if value is not None})

    def __enter__(self) -> "Watch":
        if self._ranks > 1:
            self._folder.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, watcher.__file__, *map(str, self._arguments)]
            # a session of its own: Ctrl-C is for the rank, whose last words are still to be told
            self._watcher = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
            os.set_blocking(self._watcher.stdin.fileno(), False)
            self._log({"pid": os.getpid()})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._watcher is None:
            return
        self._log({"ended": True, "error": None if kind is None else f"{kind.__name__}: {error}"[:_LONGEST_ERROR]})
        watcher, self._watcher = self._watcher, None
        watcher.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            watcher.wait(_LAST_WORDS_S)
        if isinstance(error, MindPanguError):
            # MindSpore's engine would wait for the other ranks when the interpreter ends
            print(f"mindpangu: error: rank {self._rank}: {error}", file=sys.stderr, flush=True)
            os._exit(1)

    def _log(self, news: dict[str, object]) -> None:
        if self._watcher is not None:
            # a watcher that was killed, or is stopped and reads nothing, is no reason to end or to wait
            with contextlib.suppress(BrokenPipeError, BlockingIOError):
                os.write(self._watcher.stdin.fileno(), json.dumps(news).encode() + b"\n")
