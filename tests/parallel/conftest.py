"""Starting trainings of several processes, as msrun does on a cluster."""

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

from mindpangu.config import load_config
from mindpangu.data.prepare import prepare_routing

PROJECT = Path(__file__).parents[2]
SECONDS = 300


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_ranks(ranks, script, arguments, folder, **variables):
    """msrun with so many processes of a Python script, in a session of its own. Logs go to `folder`."""
    tools = Path(sys.executable).parent
    msrun = shutil.which("msrun", path=f"{tools}{os.pathsep}{os.environ['PATH']}")
    if msrun is None:
        pytest.skip("msrun is not there")
    environment = os.environ | {"GLOG_v": "3", "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"} | variables
    environment["PATH"] = f"{tools}{os.pathsep}{environment['PATH']}"  # msrun starts "python"
    command = [msrun, f"--worker_num={ranks}", f"--local_worker_num={ranks}", f"--master_port={free_port()}"]
    command += ["--join=True", f"--log_dir={folder / 'msrun_log'}", *map(str, script), *map(str, arguments)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True)


def finish(process, folder, seconds=SECONDS):
    """The exit code; whatever still runs afterwards is killed."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        pytest.fail("\n".join([*(path.read_text()[-1500:] for path in sorted(folder.rglob("worker_*.log")))]))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def parallel_overrides(tiny_overrides, tmp_path_factory):
    """The tiny Σ of all tests with 4 heads and 4 experts a domain, so that 4 ranks can share it, and always clipped."""
    output = tmp_path_factory.mktemp("parallel")
    shutil.copytree(Path(tiny_overrides["training.output_dir"]) / "prepared", output / "prepared")
    shutil.rmtree(output / "prepared" / "routing")
    overrides = tiny_overrides | {
        "training.output_dir": str(output),
        "model.num_heads": "4",
        "domains.experts_per_domain": "4",
        "training.local_batch_size": "2",
        "training.global_batch_size": "8",
        "training.max_norm": "0.5",
        "optimizer.expert_eps": "1e-8",
    }
    prepare_routing(load_config(None, overrides), say=lambda text: None)
    return overrides


@pytest.fixture(scope="session")
def trained(parallel_overrides, tmp_path_factory):
    """trained(ranks, steps, **overrides) → folder with what `training_worker.py` has found; each only once."""
    done = {}

    def run(ranks, steps, **changes):
        overrides = parallel_overrides | {key.replace("__", "."): value for key, value in changes.items()}
        key = ranks, steps, json.dumps(overrides, sort_keys=True)
        if key not in done:
            folder = tmp_path_factory.mktemp("trained")
            worker, arguments = [Path(__file__).with_name("training_worker.py")], [json.dumps(overrides), folder, steps]
            if ranks == 1:
                environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
                command = [sys.executable, *map(str, worker), *map(str, arguments)]
                subprocess.run(command, env=environment, check=True, timeout=SECONDS)
            else:
                code = finish(start_ranks(ranks, worker, arguments, folder), folder)
                assert code == 0, "\n".join(log.read_text()[-1500:] for log in sorted(folder.rglob("worker_*.log")))
            done[key] = folder
        return done[key]

    return run
