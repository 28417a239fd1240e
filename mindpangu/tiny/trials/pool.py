"""A pool of workers that run trials, each in its own process."""

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
    """Runs the trials that are not done yet. A failed trial does not stop the others.

    However this process ends, the running trials save a checkpoint and end as well. Calling this again resumes them and
    retries failed ones.

    Args:
        processes: number of trials that run at the same time.

    Returns:
        The name of each failed trial → the reason.

    Raises:
        ConfigError: processes is below 1.
    """
    require_processes(processes)
    pending = [trial for trial in trials if not trial.is_done()]
    failed: dict[str, str] = {}
    if not pending:
        return failed
    running = _RunningProcesses()
    with (
        tqdm(total=len(trials), initial=len(trials) - len(pending), unit="training", disable=None) as bar,
        ThreadPoolExecutor(processes) as workers,
    ):
        try:
            futures = {workers.submit(running.run, trial): trial for trial in pending}
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
    """Raises ConfigError if the number of processes is below 1."""
    if processes < 1:
        raise ConfigError(f"--processes is {processes}; allowed: >= 1")


class _RunningProcesses:
    """The processes of the trials that are running."""

    def __init__(self) -> None:
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, trial: Trial) -> str:
        """Runs a trial to its end. Returns why it failed, or "" on success."""
        trial.prepare_folder()
        command = [sys.executable, *PROGRAM, str(trial.folder.root)]
        command += ["--inputs", json.dumps(trial.inputs)]
        command += ["--decode"] * trial.decode + ["--keep-checkpoint"] * trial.keep_checkpoint
        trial.log_file.unlink(missing_ok=True)
        with open(trial.log_file, "x", encoding="utf-8") as log:
            with self._lock:
                if self._stopped:
                    return "stopped"
                # in its own session, so that Ctrl-C reaches only this process, which tells the trials to save and end
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
                self._processes.add(process)
            code = process.wait()
            with self._lock:
                self._processes.discard(process)
                _close_stdin(process)
        return "" if code == 0 and trial.is_done() else _failure_reason(trial, code)

    def stop(self) -> None:
        """Tells every process to end, and prevents new ones from starting."""
        with self._lock:
            self._stopped = True
            for process in self._processes:
                _close_stdin(process)


def _close_stdin(process: "subprocess.Popen[bytes]") -> None:
    """Tells a trial to end: it ends when its standard input does."""
    assert process.stdin is not None
    process.stdin.close()


def _failure_reason(trial: Trial, code: int) -> str:
    lines = read_text_leniently(trial.log_file).splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "")
    is_error = last.startswith("error: ")
    reason = last.removeprefix("error: ") if is_error else f"its process ended with {code}: {last}"
    return f"{reason} (full log: {trial.log_file})"
