"""The process that watches on behalf of one rank. `watch.Watch` runs it as a script. Standard library only.

It is a separate process because a rank that waits in MindSpore may hold Python's global lock, and then none of its
threads run. It reads from standard input what its rank is doing and publishes this in a file of the run folder. It
reads the files of the other ranks, and ends its own rank if one of them failed, died, or hangs, or if its rank takes
too long.
"""

import contextlib
import json
import math
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

INTERVAL_S = 0.5


class Watcher:
    """Publishes what one rank is doing, and watches the others.

    Args:
        folder: the job's folder, on a file system that all ranks see; empty, or left by a job that has ended.
        rank, ranks: the rank that it watches for, and the number of ranks.
        timeout: seconds that a rank may take for one activity.
        silent: seconds without an update after which a rank counts as lost; a shared file system may be slow.
    """

    def __init__(self, folder: Path, rank: int, ranks: int, timeout: float, silent: float):
        self._folder = folder
        self._rank = rank
        self._timeout = timeout
        self._silent = silent
        self._others = [other for other in range(ranks) if other != rank]
        self._state = {"host": socket.gethostname(), "pid": 0, "step": 0, "doing": "the start"}
        self._since = time.monotonic()
        self._seen = dict.fromkeys(range(ranks), (0.0, time.monotonic()))

    def watch(self, news: int) -> str | None:
        """Watches until the rank has ended or must be ended. Returns the problem, or None if it ended by itself.

        Args:
            news: file descriptor from which the rank's reports are read, one JSON object per line; it is closed when
                the rank ends.
        """
        unread = b""
        next_look = 0.0
        while True:
            if select.select([news], [], [], max(0.0, next_look - time.monotonic()))[0]:
                received = os.read(news, 65536)
                *lines, unread = (unread + received).split(b"\n")
                for line in lines:
                    self._state |= json.loads(line)
                    self._since = time.monotonic()
                if not received:
                    return self._ended()
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + INTERVAL_S
                self._publish()
                if "ended" not in self._state and (problem := self._problem()):
                    self._publish(ended=True, error=f"ended, because {problem}")
                    return problem

    def _ended(self) -> str | None:
        """Publishes the last state of a rank that is gone, and returns the problem if it did not end by itself.

        msrun kills all ranks a second after one has died. The message must name that rank, not those killed after it.
        """
        died = time.time()
        if "ended" in self._state:
            self._publish()
            return None
        self._publish(beat=died, dead=True)
        time.sleep(3 * INTERVAL_S)
        problems = (self._problem_of(rank, died) for rank in self._others)
        return next(filter(None, problems), None) or (
            f"(process {self._state['pid']}) was killed, often because memory ran out, or crashed; its last step was "
            f"{self._state['step']}, doing {self._state['doing']}"
        )

    def _problem(self) -> str | None:
        elapsed = time.monotonic() - self._since
        if elapsed > self._timeout:
            return (
                f"{self._state['doing']} in step {self._state['step']} takes longer than {self._timeout:.0f} s "
                "(parallelism.timeout): a rank is missing, or the ranks do not agree"
            )
        return next(filter(None, map(self._problem_of, self._others)), None)

    def _problem_of(self, rank: int, until: float = math.inf) -> str | None:
        """Returns the problem with another rank, or None. A rank that died counts only if it died before `until`."""
        try:
            state = json.loads(self._file(rank).read_text("utf-8"))
        except (OSError, ValueError):
            return None  # it has not started; a rank that waits for it will time out
        where = f"rank {rank} on {state['host']}"
        last = f"its last step was {state['step']}, doing {state['doing']}"
        if state.get("error"):
            return None if state["error"].startswith("ended, because") else f"{where} failed: {state['error']} ({last})"
        if state.get("ended"):
            return None
        if state.get("dead") and state["beat"] >= until:
            return None
        if state.get("dead") or (state["host"] == self._state["host"] and not _is_alive(state["pid"])):
            return f"{where} (process {state['pid']}) is dead; {last}"
        beat, since = self._seen[rank]
        if state["beat"] != beat:
            self._seen[rank] = state["beat"], time.monotonic()
        elif time.monotonic() - since > self._silent:
            return f"{where} has not been heard of for {self._silent:.0f} s; {last}"
        return None

    def _publish(self, **more: object) -> None:
        """Writes the rank's state, and `more`, to its file."""
        path = self._file(self._rank)
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        with contextlib.suppress(OSError):  # writing a checkpoint will report a full disk
            unfinished.unlink(missing_ok=True)
            with open(unfinished, "x", encoding="utf-8") as file:
                file.write(json.dumps({"beat": time.time()} | self._state | more))
            unfinished.replace(path)

    def _file(self, rank: int) -> Path:
        return self._folder / f"rank_{rank}.json"


def _is_alive(pid: int) -> bool:
    """True if a process on this machine is alive; a zombie is not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False


def main() -> None:
    """Runs a watcher: watcher.py FOLDER RANK RANKS TIMEOUT SILENT PID."""
    folder, rank, ranks, timeout, silent, pid = sys.argv[1:]
    problem = Watcher(Path(folder), int(rank), int(ranks), float(timeout), float(silent)).watch(sys.stdin.fileno())
    if problem:
        print(f"mindpangu: error: rank {rank}: {problem}", file=sys.stderr, flush=True)
        if os.getppid() == int(pid):
            os.kill(int(pid), signal.SIGKILL)  # it may be stuck where no other signal is handled


if __name__ == "__main__":
    main()
