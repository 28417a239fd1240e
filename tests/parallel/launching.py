"""Starts trainings with several processes through msrun, as on a cluster."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SECONDS = 600  # until a training counts as hanging; four ranks on two busy cores are slow


def words_of(overrides) -> list[str]:
    """Returns the command-line words of a training with these overrides."""
    return ["train", *(word for key, value in overrides.items() for word in (f"--{key}", str(value)))]


def losses_of(root: Path) -> list[float]:
    """Returns the losses of all steps in a run folder so far."""
    path = root / "metrics.jsonl"
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()] if path.exists() else []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_ranks(ranks, script, arguments, folder, **variables):
    """Starts a Python script in `ranks` processes through msrun, in a new session. Logs go to `folder`."""
    tools = Path(sys.executable).parent
    msrun = shutil.which("msrun", path=f"{tools}{os.pathsep}{os.environ['PATH']}")
    if msrun is None:
        pytest.skip("msrun is not installed")
    environment = os.environ | {"GLOG_v": "3", "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"} | variables
    environment["PATH"] = f"{tools}{os.pathsep}{environment['PATH']}"  # msrun starts "python"
    command = [msrun, f"--worker_num={ranks}", f"--local_worker_num={ranks}", f"--master_port={free_port()}"]
    command += ["--join=True", f"--log_dir={folder / 'msrun_log'}", *map(str, script), *map(str, arguments)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True)


def finish(process, folder, seconds=SECONDS):
    """Waits for a process, kills what is left of its session, and returns its exit code."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        pytest.fail("\n".join(path.read_text()[-1500:] for path in sorted(folder.rglob("worker_*.log"))))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
