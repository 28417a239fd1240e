"""recipes/run_cpu_cluster.sh trains with several processes of one machine, and restarts a training that fails."""

import re
import subprocess

import pytest
from stand_ins import MSRUN, PROJECT, without_ascend


def run_cpu_cluster(machine, *arguments, cwd=PROJECT, **variables):
    machine.add_program("msrun", MSRUN)
    command = ["bash", str(PROJECT / "recipes/run_cpu_cluster.sh"), *arguments]
    environment = machine.environment(**variables)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


@without_ascend
def test_the_processes_train_together_and_one_evaluates(machine):
    done = run_cpu_cluster(machine, "4", "--parallelism.tensor_parallel", "2")

    assert done.returncode == 0, done.stderr
    assert "4 processes on this machine train together." in done.stdout
    options = machine.msrun_options()
    assert (options["worker_num"], options["local_worker_num"], options["master_addr"]) == ("4", "4", "127.0.0.1")
    mesh = "--parallelism.data_parallel=4 --parallelism.expert_parallel=4 --parallelism.tensor_parallel=2"
    assert machine.log_lines("msruns")[0].endswith(f"train --config={PROJECT}/recipes/cpu_smoke.yaml {mesh}")
    assert any(line.startswith("OMP_NUM_THREADS=") for line in machine.log_lines("env"))
    verbs = [line.split()[0] for line in machine.log_lines("verbs")]
    assert verbs == ["tokenizer", "data", "routing", "evaluate", "generate"]


@pytest.mark.parametrize("number", ["", "0", "many", "-1"])
def test_a_cpu_cluster_needs_the_number_of_processes(machine, number):
    done = run_cpu_cluster(machine, number)
    assert done.returncode == 1
    assert "expected the number of processes" in done.stderr


@without_ascend
def test_a_training_that_fails_is_resumed_from_its_checkpoint(machine, tmp_path):
    folders = {"RUN_FOLDER": str(tmp_path), "MSRUN_STEPS": str(tmp_path)}

    done = run_cpu_cluster(machine, "2", MSRUN_EXIT="9", RESTARTS="2", **folders)

    assert done.returncode == 9
    runs = machine.log_lines("msruns")
    assert ["--resume" in run for run in runs] == [False, True, True]
    logs = [re.search(r"--log_dir=(\S+)", run)[1] for run in runs]
    assert logs == [f"{tmp_path}/msrun_log{end}" for end in ("", "_restart_1", "_restart_2")]
    assert "continuing from the last checkpoint, restart 2 of 2" in done.stderr


@without_ascend
def test_a_restart_that_takes_the_same_steps_again_has_taken_steps(machine, tmp_path):
    """The metrics of a step may have the same size each time."""
    folders = {"RUN_FOLDER": str(tmp_path), "MSRUN_REPEATS": str(tmp_path)}

    done = run_cpu_cluster(machine, "2", MSRUN_EXIT="9", RESTARTS="2", **folders)

    assert done.returncode == 9
    assert len(machine.log_lines("msruns")) == 3


@without_ascend
def test_a_configuration_is_looked_up_in_the_current_folder(machine, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    (here / "my.yaml").touch()

    done = run_cpu_cluster(machine, "2", "--config", "my.yaml", cwd=here)

    assert done.returncode == 0, done.stderr
    assert f"--config={here}/my.yaml" in machine.log_lines("msruns")[0]


@without_ascend
def test_a_training_that_fails_before_its_first_step_is_not_started_again(machine):
    done = run_cpu_cluster(machine, "2", MSRUN_EXIT="9", RESTARTS="2")

    assert done.returncode == 9
    assert len(machine.log_lines("msruns")) == 1
    assert "failed before its first step" in done.stderr


@without_ascend
def test_a_training_that_the_user_stopped_is_not_started_again(machine, tmp_path):
    folders = {"RUN_FOLDER": str(tmp_path), "MSRUN_STEPS": str(tmp_path), "MSRUN_STOPPED": str(tmp_path)}

    done = run_cpu_cluster(machine, "2", MSRUN_EXIT="1", RESTARTS="2", **folders)

    assert done.returncode == 143
    assert len(machine.log_lines("msruns")) == 1
