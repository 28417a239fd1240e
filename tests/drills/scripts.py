"""Runs recipes/run_910.sh and run_cpu_cluster.sh in a sandbox, with real trainings."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from commands import RUN
from contents import losses_of
from verbs import options

PROJECT = Path(__file__).parents[2]
RESUME_HINT = "run the same command with --resume to continue"

ENDLESS = {"training.steps": "5000", "checkpoint.save_steps": "5000", "monitor.log_steps": "1"}
TWO_RANKS = {
    "model.num_heads": "4",
    "domains.experts_per_domain": "4",
    "training.local_batch_size": "2",
    "training.global_batch_size": "8",
    "parallelism.data_parallel": "2",
    "parallelism.expert_parallel": "2",
}

FULL_SHM = 'mount -t tmpfs -o size=16k tmpfs /dev/shm && head -c 16384 /dev/zero > /dev/shm/full && exec "$@"'
"""Shell script that starts a command with a full /dev/shm, in a mount namespace of its own."""


def full_shm_prefix() -> list[str]:
    """Returns the words before a command that give it a full /dev/shm; skips the test if this user may not mount."""
    words = ["unshare", "--mount", "bash", "-c", FULL_SHM, "bash"]
    done = subprocess.run([*words, "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this user may not mount a file system in a namespace: {done.stderr.strip()}")
    return words


class Script:
    """A run of run_910.sh, or of run_cpu_cluster.sh with several ranks. A context manager that kills leftovers.

    Args:
        box: the sandbox, whose run folder it trains.
        changes: overrides of its configuration.
        ranks: number of processes that train.
        prefix: words that start the script.
    """

    def __init__(self, box: Path, changes: dict[str, str], ranks: int = 1, prefix: list[str] | None = None):
        self.run = box / "run"
        self._mark = f"MINDPANGU_DRILL={box}"
        self._log = box.with_name("script.txt")
        (box / "empty.yaml").write_text("{}\n")
        script = ["run_910.sh"] if ranks == 1 else ["run_cpu_cluster.sh", str(ranks)]
        overrides = RUN | {"data.corpus": f"[{box}/corpus.jsonl]", "training.output_dir": str(box)}
        overrides |= (TWO_RANKS if ranks > 1 else {}) | changes
        command = ["bash", f"recipes/{script[0]}", *script[1:], "--config", str(box / "empty.yaml")]
        name, _, value = self._mark.partition("=")
        environment = os.environ | {"MINDPANGU_PYTHON": sys.executable, name: value}
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*(prefix or []), *command, *options(overrides)],
                cwd=PROJECT,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # a shell that runs the tests in the background makes them ignore Ctrl-C
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def __enter__(self) -> "Script":
        return self

    def __exit__(self, *exception: object) -> None:
        """Kills what still runs."""
        for process in [self.process, *self.processes()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def newest_checkpoint(self) -> int:
        """The step of the newest checkpoint; 0 if there is none."""
        path = self.run / "latest_checkpointed_iteration.txt"
        return int(path.read_text()) if path.exists() else 0

    def wait_for(self, condition: Callable[[], bool], awaited: str, seconds: float = 180.0) -> None:
        """Waits until a condition is true; fails the attempt if the script ends first, or if it takes too long."""
        until = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"ended before {awaited}: {self.output[-2000:]}"
            assert time.monotonic() < until, f"waited too long for {awaited}: {self.output[-2000:]}"
            time.sleep(0.05)

    def wait_for_steps(self, steps: int) -> None:
        self.wait_for(lambda: len(losses_of(self.run)) >= steps, f"step {steps}")

    def wait_for_training(self, steps: int) -> None:
        """Waits until the last step is saved, then stops the script before it evaluates."""
        self.wait_for_steps(steps)
        self.wait_for(lambda: self.newest_checkpoint == steps, "the last checkpoint")
        self.process.terminate()
        self.wait()

    def wait(self, seconds: float = 120.0) -> int:
        """Waits until the script has ended; returns its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds:.0f} s: {self.output[-2000:]}") from None

    def stage(self) -> psutil.Process:
        """Returns the process that trains."""
        (found,) = (each for each in self.processes() if {"mindpangu", "train"} <= set(each.cmdline()))
        return found

    def rank(self, rank: int) -> psutil.Process:
        """Returns the process of one of several ranks that train."""
        (state,) = self.run.glob(f".watch/*/rank_{rank}.json")
        return psutil.Process(json.loads(state.read_text())["pid"])

    def send(self, signum: int, to: str, rank: int = 0) -> None:
        """Sends a signal to the "script", its process "group", the "stage" that trains, or one "rank" of several."""
        if to == "group":
            os.killpg(self.process.pid, signum)
        else:
            target = {"script": lambda: self.process, "stage": self.stage, "rank": lambda: self.rank(rank)}[to]()
            target.send_signal(signum)

    def processes(self) -> list[psutil.Process]:
        """Returns the processes that the script has started and that still run."""
        return processes_marked(self._mark)

    def require_no_processes(self) -> None:
        """Asserts that no process of the script still runs; those that are about to end get a few seconds."""
        until = time.monotonic() + 5
        while (found := self.processes()) and time.monotonic() < until:
            time.sleep(0.05)
        assert not found, found


def processes_marked(mark: str) -> list[psutil.Process]:
    """Returns the processes that inherited a variable, given as "NAME=value"."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes().split(b"\0"):
                found.append(psutil.Process(int(path.parent.name)))
        except (OSError, psutil.NoSuchProcess):
            continue
    return found
