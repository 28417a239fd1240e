"""Workers that take trial after trial, each in a process of its own."""

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from tqdm import tqdm

from mindpangu.errors import ConfigError
from mindpangu.files import read_text_leniently
from mindpangu.tiny.trials.trial import Trial

PROGRAM = ("-m", "mindpangu.tiny.trials.process")


def run_trials(trials: Sequence[Trial], processes: int = 1) -> dict[str, str]:
    """Runs what is not done yet; returns name → reason of each trial that failed. The others go on without it.

    If this process ends, in whatever way, the trials that are running save a checkpoint and end too; the same call goes
    on with them. A trial that failed is tried again by it.

    Args:
        processes: how many at once.

    Raises:
        ConfigError: processes below 1.
    """
    require_processes(processes)
    waiting = [trial for trial in trials if not trial.is_done()]
    failed: dict[str, str] = {}
    if not waiting:
        return failed
    running = _Running()
    with (
        tqdm(total=len(trials), initial=len(trials) - len(waiting), unit="training", disable=None) as bar,
        ThreadPoolExecutor(processes) as workers,
    ):
        try:
            futures = {workers.submit(running.run, trial): trial for trial in waiting}
            for future in as_completed(futures):
                reason = future.result()
                if reason:
                    failed[futures[future].name] = reason
                bar.update()
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            running.stop()
            raise
    return failed


def require_processes(processes: int) -> None:
    """Raises ConfigError for a number of processes below 1."""
    if processes < 1:
        raise ConfigError(f"--processes is {processes}; allowed: >= 1")


class _Running:
    """The processes that are running."""

    def __init__(self) -> None:
        self._processes: set[subprocess.Popen] = set()
        self._lock, self._stopped = threading.Lock(), False

    def run(self, trial: Trial) -> str:
        """Runs a trial to its end; returns why it failed, or "" if it did not."""
        trial.lay_out()
        command = [sys.executable, *PROGRAM, str(trial.folder.root)]
        command += ["--inputs", json.dumps(trial.inputs)]
        command += ["--decode"] * trial.decode + ["--keep-checkpoint"] * trial.keep_checkpoint
        with open(trial.log, "w") as log:
            with self._lock:
                if self._stopped:
                    return "stopped"
                # a session of its own: Ctrl-C is for this process, which lets the others save
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
                self._processes.add(process)
            code = process.wait()
            with self._lock:
                self._processes.discard(process)
                process.stdin.close()
        return "" if code == 0 and trial.is_done() else self._reason(trial, code)

    def stop(self) -> None:
        """Lets every process end, and starts no more."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                process.stdin.close()

    @staticmethod
    def _reason(trial: Trial, code: int) -> str:
        lines = read_text_leniently(trial.log).splitlines()
        last = next((line for line in reversed(lines) if line.strip()), "")
        why = last.removeprefix("error: ") if last.startswith("error: ") else f"its process ended with {code}: {last}"
        return f"{why} (all of it: {trial.log})"
