"""The process that watches on behalf of one rank. `watch.Watch` runs it as a script. Standard library only.

It is a separate process because a rank that waits in MindSpore may hold Python's global lock, and then none of its
threads run. It reads from standard input what its rank is doing and publishes this in a file of the run folder. It
reads the files of the other ranks, and ends its own rank if one of them failed, died, or hangs, or if its rank takes
too long.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

INTERVAL_S = 0.5

Moment = Sequence[float]
"""The time on the host's monotonic clock, which never jumps, and on its wall clock, which other hosts share."""


class Watcher:
    """Publishes what one rank is doing, and watches the others.

    Args:
        folder: the job's folder, on a file system that all ranks see; empty, or left by a job that has ended.
        rank, ranks: the rank that it watches for, and the number of ranks.
        timeout: seconds that a rank may take for one activity.
        silent: seconds without an update after which a rank counts as lost; a shared file system may be slow.
        pid: the rank's process. It is published from the start, so that no other rank takes it for dead.
    """

    def __init__(self, folder: Path, rank: int, ranks: int, timeout: float, silent: float, pid: int):
        self._folder = folder
        self._rank = rank
        self._timeout = timeout
        self._silent = silent
        self._others = [other for other in range(ranks) if other != rank]
        self._state: dict[str, Any] = {
            "host": socket.gethostname(),
            "machine": machine(),
            "pid": pid,
            "step": 0,
            "doing": "the start",
        }
        self._since = time.monotonic()
        self._seen = dict.fromkeys(range(ranks), (0.0, time.monotonic()))

    @property
    def rank_has_ended(self) -> bool:
        """True if the rank has announced its end."""
        return "ended" in self._state

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
                self._state["stopped"] = _state_of(self._state["pid"]) == "T"
                if self._state["stopped"]:
                    self._since = time.monotonic()  # SIGCONT may continue the rank at any time
                self._publish()
                if not self.rank_has_ended and (problem := self._problem()):
                    self._publish(ended=True, error=f"ended, because {problem}")
                    return problem

    def _ended(self) -> str | None:
        """Publishes the last state of a rank that has exited, and returns the problem if it did not end on its own.

        When one rank dies, the collectives of the others may fail, and msrun kills all ranks a second later. The
        message must name the rank that died or failed first.
        """
        exited = _now()
        self._publish(exited=exited, dead=not self.rank_has_ended)
        if self.rank_has_ended and not self._state["error"]:
            return None
        time.sleep(3 * INTERVAL_S)
        cause = self._problem_of_others(exited)
        if cause or self.rank_has_ended:
            return cause or self._stopped_ranks(self._others) or None  # a rank prints its own error
        return (
            f"(process {self._state['pid']}) was killed, often because memory ran out, or crashed; its last step was "
            f"{self._state['step']}, doing {self._state['doing']}"
        )

    def _problem(self) -> str | None:
        elapsed = time.monotonic() - self._since
        if elapsed > self._timeout:
            cause = self._stopped_ranks(self._others) or "a rank is missing, or the ranks do not agree"
            return (
                f"{self._state['doing']} in step {self._state['step']} takes longer than {self._timeout:.0f} s "
                f"(parallelism.timeout): {cause}"
            )
        return self._problem_of_others()

    def _problem_of_others(self, exited: Moment | None = None) -> str | None:
        """Returns the first problem with another rank, or None; for `exited` see `_problem_of`.

        If a rank is stopped, the collectives of the others may fail, so it is named first.
        """
        problem = next(filter(None, (self._problem_of(rank, exited) for rank in self._others)), None)
        stopped = self._stopped_ranks(self._others if exited else [self._rank, *self._others])
        return f"{stopped}; {problem}" if problem and stopped else problem

    def _stopped_ranks(self, ranks: Sequence[int]) -> str:
        """Describes those of some ranks that are stopped; returns "" if none is."""
        states = ((rank, self._read(rank)) for rank in ranks)
        return ", ".join(
            f"rank {rank} on {state['host']} (process {state['pid']}) is stopped (SIGSTOP); kill -CONT continues it"
            for rank, state in states
            if state and state.get("stopped")
        )

    def _read(self, rank: int) -> dict[str, Any] | None:
        """Returns what the watcher of another rank has published, or None."""
        try:
            return json.loads(self._file(rank).read_text("utf-8"))
        except (OSError, ValueError):
            return None

    def _problem_of(self, rank: int, exited: Moment | None = None) -> str | None:
        """Returns the problem with another rank, or None.

        Args:
            exited: when this rank exited, if it has. Ranks that exited after it are not blamed.
        """
        state = self._read(rank)
        if state is None:
            return None  # it has not started; a rank that waits for it will time out
        same_machine = self._state["machine"] != "" and state.get("machine") == self._state["machine"]
        if exited and state.get("exited") and not _is_before(state["exited"], exited, same_machine):
            return None
        where = f"rank {rank} on {state['host']}"
        last = f"its last step was {state['step']}, doing {state['doing']}"
        if state.get("error"):
            return None if state["error"].startswith("ended, because") else f"{where} failed: {state['error']} ({last})"
        if state.get("ended"):
            return None
        if state.get("dead") or (same_machine and not _is_alive(state["pid"])):
            return f"{where} (process {state['pid']}) is dead; {last}"
        beat, since = self._seen[rank]
        if state["beat"] != beat:
            self._seen[rank] = state["beat"], time.monotonic()
        elif time.monotonic() - since > self._silent:
            return f"{where} has not been heard from for {self._silent:.0f} s; {last}"
        return None

    def _publish(self, **more: object) -> None:
        """Writes the rank's state, and `more`, to its file."""
        path = self._file(self._rank)
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        with contextlib.suppress(OSError):  # writing a checkpoint will report a full disk
            unfinished.unlink(missing_ok=True)
            with open(unfinished, "x", encoding="utf-8") as file:
                file.write(json.dumps({"beat": time.monotonic()} | self._state | more))
            unfinished.replace(path)

    def _file(self, rank: int) -> Path:
        return self._folder / f"rank_{rank}.json"


def machine() -> str:
    """Returns the boot and the PID namespace in which process ids and monotonic times are valid; "" if unknown.

    Host names are not enough: containers of a host may share its name, and several hosts may be called localhost.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # some sandboxes hide them
        return ""


def _now() -> Moment:
    return time.monotonic(), time.time()


def _is_before(one: Moment, other: Moment, same_machine: bool) -> bool:
    """True if `one` is earlier. Wall clocks can jump, so they are compared only between different machines."""
    return one[0] < other[0] if same_machine else one[1] < other[1]


def _state_of(pid: int) -> str:
    """Returns the state of a process on this machine: "T" for stopped, "Z" for a zombie, "" if it does not exist."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def _is_alive(pid: int) -> bool:
    """True if a process on this machine is alive; a zombie is not."""
    return _state_of(pid) not in ("", "Z", "X")


def main() -> None:
    """Runs a watcher: watcher.py FOLDER RANK RANKS TIMEOUT SILENT PID."""
    folder, rank, ranks, timeout, silent, pid = sys.argv[1:]
    watcher = Watcher(Path(folder), int(rank), int(ranks), float(timeout), float(silent), int(pid))
    problem = watcher.watch(sys.stdin.fileno())
    if problem:
        print(f"mindpangu: error: rank {rank}: {problem}", file=sys.stderr, flush=True)
        if os.getppid() == int(pid) and not watcher.rank_has_ended:
            os.kill(int(pid), signal.SIGKILL)  # it may be stuck where no other signal is handled


if __name__ == "__main__":
    main()
