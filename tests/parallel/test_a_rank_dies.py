"""After kill -9 of one rank, all ranks end, the log names it, and training resumes as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from launching import PROJECT, SECONDS, finish, losses_of, start_ranks, words_of

STEPS = 24
PROGRAM = ["python", "-m", "mindpangu"]


@pytest.fixture
def overrides(run_of):
    """overrides(name) returns overrides with a separate run folder."""

    def make(name):
        return run_of(
            name,
            training__steps=STEPS,
            checkpoint__save_steps=5,
            parallelism__data_parallel=2,
            parallelism__expert_parallel=2,
        )

    return make


@pytest.fixture
def uninterrupted(overrides, tmp_path):
    """The losses of an uninterrupted training."""
    process = start_ranks(2, PROGRAM, words_of(overrides("uninterrupted")), tmp_path / "logs0")
    assert finish(process, tmp_path) == 0
    return losses_of(tmp_path / "uninterrupted")


def wait_for_step(step, process, root):
    while len(losses_of(root)) < step:
        assert process.poll() is None
        time.sleep(0.1)


def send(signum, process, root, *ranks):
    """Sends a signal to some ranks in the middle of training."""
    wait_for_step(8, process, root)
    for rank in ranks:
        (state,) = (root / ".watch").glob(f"*/rank_{rank}.json")
        os.kill(json.loads(state.read_text())["pid"], signum)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_and_training_resumes(overrides, uninterrupted, tmp_path, victim):
    killed = overrides("killed")
    root = tmp_path / "killed"
    process = start_ranks(2, PROGRAM, words_of(killed), tmp_path / "logs1")
    send(signal.SIGKILL, process, root, victim)

    assert finish(process, tmp_path, 120) != 0
    other = (tmp_path / "logs1" / "msrun_log" / f"worker_{1 - victim}.log").read_text()
    assert f"mindpangu: error: rank {1 - victim}: rank {victim} on " in other
    assert "is dead; its last step was " in other

    resumed = start_ranks(2, PROGRAM, [*words_of(killed), "--resume"], tmp_path / "logs2")

    assert finish(resumed, tmp_path) == 0
    assert losses_of(root) == uninterrupted


def run_script(overrides, folder):
    """Starts run_cpu_cluster.sh with two processes and at most one restart."""
    (folder / "empty.yaml").write_text("{}\n")  # the defaults, as in `uninterrupted`
    words = words_of(overrides | {"training.restarts": 1})[1:]
    command = ["bash", "recipes/run_cpu_cluster.sh", "2", "--config", str(folder / "empty.yaml"), *words]
    environment = os.environ | {"MINDPANGU_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=PROJECT,
            start_new_session=True,
            # a shell that runs the tests in the background makes them ignore Ctrl-C
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


@pytest.mark.slow
def test_the_script_restarts_a_killed_training(overrides, uninterrupted, tmp_path):
    process = run_script(overrides("killed"), tmp_path)
    send(signal.SIGKILL, process, tmp_path / "killed", 1)

    assert finish(process, tmp_path, 2 * SECONDS) == 0
    log = (tmp_path / "log.txt").read_text()
    assert "is dead; its last step was " in log
    assert "continuing from the last checkpoint, restart 1 of 1" in log
    assert losses_of(tmp_path / "killed") == uninterrupted
    assert (
        "is dead" in (tmp_path / "killed" / "msrun_log" / "worker_0.log").read_text()
    )  # kept next to the log of the restart
    assert (tmp_path / "killed" / "msrun_log_restart_1" / "worker_1.log").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "to"), [(signal.SIGTERM, "one rank"), (signal.SIGINT, "group"), (signal.SIGHUP, "script")]
)
def test_a_stopped_training_ends_normally_and_is_not_restarted(overrides, tmp_path, signum, to):
    process = run_script(overrides("stopped"), tmp_path)
    wait_for_step(8, process, tmp_path / "stopped")

    if to == "one rank":
        send(signum, process, tmp_path / "stopped", 1)
    elif to == "group":
        os.killpg(process.pid, signum)
    else:
        process.send_signal(signum)

    assert finish(process, tmp_path) == 128 + signum
    steps = len(losses_of(tmp_path / "stopped"))
    assert (tmp_path / "stopped" / "latest_checkpointed_iteration.txt").read_text() == f"{steps}\n"
    log = (tmp_path / "log.txt").read_text()
    assert "run the same command with --resume to continue" in log
    assert "Traceback" not in log
    assert "continuing from the last checkpoint" not in log
    assert 8 <= len(losses_of(tmp_path / "stopped")) < STEPS
