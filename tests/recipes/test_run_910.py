"""The main job's script and the environment behind it, driven with stand-ins on PATH: nothing is installed or trained.

The stand-in interpreter answers the verbs of the command line and notes them; msrun and npu-smi are stand-ins too.
Real installations are tried by `.ci/run` on a clean clone.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
GENERATE = "generate --every-domain --temperature 0.6 --top-k 20"
STAGES = ["tokenizer train", "data prepare", "routing build", "train", "evaluate", GENERATE]

PYTHON = f"""#!/usr/bin/env bash
echo "$*" >> "$NOTES/python"
case "$1 $2" in
    "-c "*"import mindspore"*) exit 0 ;;
    "-c "*) exec {sys.executable} "$@" ;;
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip") echo "Collecting mindspore"; sleep "${{PIP_SECONDS:-0}}"; exit "${{PIP_EXIT:-0}}" ;;
    "-m mindpangu")
        shift 2
        if [ "$1" = config ]; then
            case "${{*: -1}}" in
                context.device_target) echo "${{DEVICE:-CPU}}" ;;
                run_folder) echo "${{RUN_FOLDER:-results/trial}}" ;;
                training.restarts) echo "${{RESTARTS:-0}}" ;;
            esac
            exit 0
        fi
        echo "$*" >> "$NOTES/verbs"
        if [ "$1" = "${{SLOW_VERB:-}}" ]; then trap "exit 0" INT; touch "$NOTES/started"; sleep 5 & wait; fi
        if [ "$1" = "${{BAD_VERB:-}}" ]; then exit 7; fi ;;
esac
"""
MSRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$NOTES/msrun"
echo "$*" >> "$NOTES/msruns"
if [ -n "${MSRUN_STEPS:-}" ]; then echo "{}" >> "$MSRUN_STEPS/metrics.jsonl"; fi
if [ -n "${MSRUN_STOPPED:-}" ]; then touch "$MSRUN_STOPPED/.stopped"; fi
env | grep -E '^(HCCL|ASCEND|GLOG|OMP)' > "$NOTES/env"
command -v python > "$NOTES/worker"
exit "${MSRUN_EXIT:-0}"
"""
HAS_ASCEND = Path("/usr/local/Ascend").exists() or any(Path("/dev").glob("davinci[0-9]*"))


class Machine:
    """A machine made of stand-ins. `run` starts a script of the project on it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.bin = folder / "bin"
        self.notes = folder / "notes"
        self.cann = folder / "cann"
        for path in (self.bin, self.notes, self.cann):
            path.mkdir()
        self.put("python", PYTHON)
        self.put("python3", PYTHON)
        self.variables = {"MINDPANGU_PYTHON": str(self.bin / "python")}

    def put(self, name: str, text: str = "#!/bin/sh\n") -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def add_npus(self) -> None:
        self.put("npu-smi")
        self.put("msrun", MSRUN)
        self.variables |= {"ASCEND_HOME_PATH": str(self.cann), "DEVICE": "Ascend"}

    def environment(self, **variables: str) -> dict[str, str]:
        path = f"{self.bin}:/usr/bin:/bin"
        return {"PATH": path, "HOME": str(self.folder), "NOTES": str(self.notes), **self.variables, **variables}

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        command = ["bash", str(PROJECT / "recipes/run_910.sh"), *arguments]
        return subprocess.run(command, env=self.environment(**variables), capture_output=True, text=True, timeout=60)

    def noted(self, name: str) -> list[str]:
        path = self.notes / name
        return path.read_text().splitlines() if path.exists() else []

    def msrun_options(self) -> dict[str, str]:
        options = [line.removeprefix("--") for line in self.noted("msrun") if "=" in line]
        return dict(option.split("=", 1) for option in options)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def cluster(machine):
    machine.add_npus()
    return machine


# ---- Without NPUs ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(HAS_ASCEND, reason="this host has NPUs or CANN")
@pytest.mark.parametrize(
    ("npus", "cann", "reason"),
    [
        (False, False, "No NPU and no CANN here"),
        (True, False, "NPUs were found but CANN was not"),
        (False, True, "CANN was found but no NPU"),
    ],
)
def test_without_npus_or_cann_one_line_says_why_the_cpu_is_used(machine, npus, cann, reason):
    if npus:
        machine.put("npu-smi")
    if cann:
        machine.variables["ASCEND_HOME_PATH"] = str(machine.cann)
    done = machine.run()
    assert done.returncode == 0
    lines = [line for line in done.stdout.splitlines() if "falling back to the CPU" in line]
    assert len(lines) == 1
    assert lines[0].startswith(reason)
    assert lines[0].endswith("recipes/cpu_smoke.yaml.")


@pytest.mark.skipif(HAS_ASCEND, reason="this host has NPUs or CANN")
def test_an_npu_smi_that_finds_no_card_is_no_npu(machine):
    machine.put("npu-smi", "#!/bin/sh\nexit 1\n")
    assert machine.run().stdout.startswith("No NPU and no CANN here")


def test_every_stage_gets_the_configuration_and_the_overrides(machine):
    done = machine.run("--training.steps", "20", "--data.seed=3", "--config", "recipes/cpu_smoke.yaml")
    assert done.returncode == 0
    options = "--config recipes/cpu_smoke.yaml --training.steps 20 --data.seed 3"
    assert machine.noted("verbs") == [f"{stage} {options}" for stage in STAGES]


@pytest.mark.parametrize("option", [["--resume"], ["--load", "output/old/checkpoint"]])
def test_resume_and_load_reach_training_only(machine, option):
    assert machine.run(*option).returncode == 0
    with_option = [verb for verb in machine.noted("verbs") if option[0] in verb]
    assert with_option == [f"train --config recipes/cpu_smoke.yaml {' '.join(option)}"]


@pytest.mark.parametrize("written_by", ["train", "extract"])
def test_load_takes_table_and_tokenizer_of_the_checkpoint(machine, tmp_path, written_by):
    """A run folder has them itself, what the lifecycle's verbs write has them in its iteration."""
    weights = tmp_path / "weights"
    parent = weights if written_by == "train" else weights / "iteration_00000150"
    for name in ("routing", "tokenizer"):
        (parent / name).mkdir(parents=True)
    (parent / "tokenizer" / "main.model").touch()
    assert machine.run("--load", str(weights)).returncode == 0
    (verb,) = [verb for verb in machine.noted("verbs") if "--load" in verb]
    assert f"--routing.table {parent}/routing" in verb
    assert f"--data.tokenizer {parent}/tokenizer/main.model" in verb


@pytest.mark.parametrize("verb", ["tokenizer", "data", "routing", "train", "evaluate", "generate"])
def test_a_failing_stage_ends_the_job_with_its_exit_code(machine, verb):
    done = machine.run(BAD_VERB=verb)
    assert done.returncode == 7
    assert machine.noted("verbs")[-1].split()[0] == verb


def test_nothing_starts_after_ctrl_c_even_if_the_stage_ends_well(machine):
    command = ["bash", str(PROJECT / "recipes/run_910.sh")]
    job = subprocess.Popen(
        command,
        env=machine.environment(SLOW_VERB="train"),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        # a shell that puts the tests into the background ignores Ctrl-C on their behalf
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 20
    while not (machine.notes / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(job.pid, signal.SIGINT)
    assert job.wait(timeout=20) == 130
    assert machine.noted("verbs")[-1].startswith("train ")


@pytest.mark.skipif(HAS_ASCEND, reason="this host has NPUs or CANN")
def test_a_configuration_for_npus_is_refused_without_them_before_anything_starts(machine):
    done = machine.run("--config", "recipes/pangu_sigma_node.yaml", DEVICE="Ascend")
    assert done.returncode == 1
    assert "recipes/pangu_sigma_node.yaml asks for context.device_target Ascend. No NPU" in done.stderr
    assert machine.noted("verbs") == []


@pytest.mark.parametrize("arguments", [["--resum"], ["steps"], ["--config"], ["--training.steps"], ["--steps=3"]])
def test_a_wrong_option_is_named(machine, arguments):
    done = machine.run(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert arguments[0].split("=")[0] in done.stderr
    assert machine.noted("python") == []


def test_help_names_every_option_and_variable_and_starts_nothing(machine):
    done = machine.run("--help")
    assert done.returncode == 0
    script = (PROJECT / "recipes/run_910.sh").read_text(encoding="utf-8")
    for name in [
        "--config",
        "--resume",
        "--load",
        "MINDPANGU_PYTHON",
        "PIP_FIND_LINKS",
        "NPROC",
        "NNODES",
        "NODE_RANK",
    ]:
        assert name in done.stdout
    for name in ["HCCL_CONNECT_TIMEOUT", "HCCL_BUFFSIZE", "HCCL_EXEC_TIMEOUT", "HCCL_DETERMINISTIC", "MASTER_PORT"]:
        assert name in done.stdout
        assert f"{name}:-" in script
    assert machine.noted("python") == []


# ---- Several processes on the CPU ------------------------------------------------------------------------------------


def run_cpu_cluster(machine, *arguments, **variables):
    machine.put("msrun", MSRUN)
    command = ["bash", str(PROJECT / "recipes/run_cpu_cluster.sh"), *arguments]
    return subprocess.run(command, env=machine.environment(**variables), capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(HAS_ASCEND, reason="this host has NPUs or CANN")
def test_processes_of_this_machine_train_together_and_one_evaluates(machine):
    done = run_cpu_cluster(machine, "4", "--parallelism.tensor_parallel", "2")
    assert done.returncode == 0, done.stderr
    assert "4 processes on this machine train together." in done.stdout
    options = machine.msrun_options()
    assert (options["worker_num"], options["local_worker_num"], options["master_addr"]) == ("4", "4", "127.0.0.1")
    mesh = "--parallelism.data_parallel 4 --parallelism.expert_parallel 4 --parallelism.tensor_parallel 2"
    assert machine.noted("msruns")[0].endswith(f"train --config recipes/cpu_smoke.yaml {mesh}")
    assert any(line.startswith("OMP_NUM_THREADS=") for line in machine.noted("env"))
    assert [line.split()[0] for line in machine.noted("verbs")] == [
        "tokenizer",
        "data",
        "routing",
        "evaluate",
        "generate",
    ]


@pytest.mark.parametrize("number", ["", "0", "many", "-1"])
def test_a_cpu_cluster_wants_a_number(machine, number):
    done = run_cpu_cluster(machine, number)
    assert done.returncode == 1
    assert "expected the number of processes" in done.stderr


@pytest.mark.skipif(HAS_ASCEND, reason="this host has NPUs or CANN")
def test_a_training_that_fails_goes_on_from_its_checkpoint(machine, tmp_path):
    folder = {"RUN_FOLDER": str(tmp_path), "MSRUN_STEPS": str(tmp_path)}
    done = run_cpu_cluster(machine, "2", MSRUN_EXIT="9", RESTARTS="2", **folder)
    assert done.returncode == 9
    runs = machine.noted("msruns")
    assert ["--resume" in run for run in runs] == [False, True, True]
    logs = [re.search(r"--log_dir=(\S+)", run)[1] for run in runs]
    assert logs == [f"{tmp_path}/msrun_log{end}" for end in ("", "_restart_1", "_restart_2")]
    assert "continuing from the last checkpoint, restart 2 of 2" in done.stderr


@pytest.mark.skipif(HAS_ASCEND, reason="this host has NPUs or CANN")
def test_a_training_that_fails_before_its_first_step_is_not_started_again(machine):
    done = run_cpu_cluster(machine, "2", MSRUN_EXIT="9", RESTARTS="2")
    assert done.returncode == 9
    assert len(machine.noted("msruns")) == 1
    assert "failed before its first step" in done.stderr


@pytest.mark.skipif(HAS_ASCEND, reason="this host has NPUs or CANN")
def test_a_training_that_was_stopped_is_not_started_again(machine, tmp_path):
    folder = {"RUN_FOLDER": str(tmp_path), "MSRUN_STEPS": str(tmp_path), "MSRUN_STOPPED": str(tmp_path)}
    done = run_cpu_cluster(machine, "2", MSRUN_EXIT="1", RESTARTS="2", **folder)
    assert done.returncode == 130
    assert len(machine.noted("msruns")) == 1


# ---- With NPUs -------------------------------------------------------------------------------------------------------


def test_one_node_prepares_then_starts_msrun_over_all_its_npus(cluster):
    done = cluster.run("--training.steps", "5", "--resume", ASCEND_RT_VISIBLE_DEVICES="0,1,2,3,4,5,6,7")
    assert done.returncode == 0, done.stderr
    options = "--config recipes/pangu_sigma_node.yaml --training.steps 5"
    assert cluster.noted("verbs") == [f"{stage} {options}" for stage in STAGES[:3]]
    assert cluster.msrun_options() == {
        "worker_num": "8",
        "local_worker_num": "8",
        "node_rank": "0",
        "master_addr": "127.0.0.1",
        "master_port": "8118",
        "cluster_time_out": "600",
        "log_dir": "results/trial/msrun_log",
        "join": "True",
        "tail_worker_log": "0",
    }
    program = cluster.noted("msrun")[len(cluster.msrun_options()) :]
    assert program == ["python", "-m", "mindpangu", "train", *options.split(), "--resume"]
    assert cluster.noted("worker") == [str(cluster.bin / "python")]
    assert {
        "HCCL_CONNECT_TIMEOUT=1200",
        "HCCL_EXEC_TIMEOUT=3600",
        "HCCL_BUFFSIZE=200",
        "HCCL_DETERMINISTIC=false",
        "ASCEND_RT_VISIBLE_DEVICES=0,1,2,3,4,5,6,7",
        "GLOG_v=3",
    } <= set(cluster.noted("env"))
    assert "falling back" not in done.stdout
    assert "HCCL_SOCKET_IFNAME" not in done.stderr


def test_the_second_of_two_nodes(cluster):
    done = cluster.run(NNODES="2", NODE_RANK="1", MASTER_ADDR="10.0.0.1", MASTER_PORT="9000", NPROC="4")
    assert done.returncode == 0, done.stderr
    options = cluster.msrun_options()
    assert (options["worker_num"], options["local_worker_num"], options["node_rank"]) == ("8", "4", "1")
    assert (options["master_addr"], options["master_port"]) == ("10.0.0.1", "9000")
    assert options["tail_worker_log"] == "4"
    assert "ASCEND_RT_VISIBLE_DEVICES=0,1,2,3" in cluster.noted("env")
    assert done.stderr.count("HCCL_SOCKET_IFNAME") == 1


def test_hccl_settings_can_be_set_from_outside(cluster):
    settings = {
        "HCCL_CONNECT_TIMEOUT": "7200",
        "HCCL_EXEC_TIMEOUT": "60",
        "HCCL_BUFFSIZE": "400",
        "HCCL_DETERMINISTIC": "true",
        "HCCL_SOCKET_IFNAME": "eth7",
        "ASCEND_RT_VISIBLE_DEVICES": "4,5",
        "GLOG_v": "1",
    }
    done = cluster.run(NNODES="2", NODE_RANK="0", MASTER_ADDR="10.0.0.1", **settings)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert {f"{name}={value}" for name, value in settings.items()} <= set(cluster.noted("env"))
    assert cluster.msrun_options()["local_worker_num"] == "2"


@pytest.mark.parametrize(
    "variables",
    [
        {"HCCL_CONNECT_TIMEOUT": "100"},
        {"HCCL_CONNECT_TIMEOUT": "7201"},
        {"NPROC": "0"},
        {"NNODES": "two"},
        {"MASTER_PORT": "80"},
        {"NODE_RANK": "1"},
        {"NODE_RANK": "", "NNODES": "2"},
    ],
)
def test_an_impossible_cluster_is_refused_before_anything_starts(cluster, variables):
    done = cluster.run(**variables)
    assert done.returncode == 1
    assert next(iter(variables)) in done.stderr
    assert cluster.noted("verbs") == []


def test_one_npu_needs_no_msrun_and_runs_all_stages(cluster):
    assert cluster.run(NPROC="1").returncode == 0
    assert cluster.noted("msrun") == []
    assert [verb.split()[0] for verb in cluster.noted("verbs")] == [stage.split()[0] for stage in STAGES]


def test_a_configuration_for_the_cpu_leaves_the_npus_idle(cluster):
    done = cluster.run("--config", "recipes/cpu_smoke.yaml", DEVICE="CPU")
    assert done.returncode == 0
    assert "the NPUs stay idle" in done.stdout
    assert cluster.noted("msrun") == []


def test_the_exit_code_of_msrun_is_that_of_the_job(cluster):
    assert cluster.run(MSRUN_EXIT="9").returncode == 9


def test_workers_that_would_be_another_python_are_refused(cluster):
    cluster.put("python", "#!/bin/sh\necho another\n")
    done = cluster.run(MINDPANGU_PYTHON=str(cluster.bin / "python3"))
    assert done.returncode == 1
    assert "msrun starts workers as 'python'" in done.stderr


# ---- The environment -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "no such interpreter"),
        ("#!/bin/sh\nexit 1\n", "it does not run"),
        ("#!/bin/sh\necho 'Traceback' >&2; echo 'it has no module mindspore' >&2; exit 1\n", "no module mindspore"),
    ],
)
def test_a_given_python_that_cannot_be_used_is_named_in_one_line(machine, text, complaint):
    if text:
        machine.put("broken", text)
    done = machine.run(MINDPANGU_PYTHON=str(machine.bin / "broken"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"MINDPANGU_PYTHON={machine.bin / 'broken'}" in line
    assert complaint in line


def test_the_compile_cache_is_switched_off_with_a_warning(machine):
    done = machine.run(MS_COMPILER_CACHE_ENABLE="1")
    assert done.stderr.count("MS_COMPILER_CACHE_ENABLE") == 1


class Clone(Machine):
    """A machine with a copy of the project's scripts and no MINDPANGU_PYTHON: `.venv` is built by the stand-in."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.variables = {"PYENV_ROOT": str(folder)}
        self.project = folder / "project"
        (self.project / "recipes").mkdir(parents=True)
        for name in ("recipes/environment.sh", "pyproject.toml", "setup.py"):
            shutil.copy(PROJECT / name, self.project / name)

    def start(self, extra: str = "", before: str = "", **variables: str) -> subprocess.Popen:
        script = f"set -euo pipefail; source recipes/environment.sh; {before} prepare_environment {extra}; echo $PYTHON"
        return subprocess.Popen(
            ["bash", "-c", script],
            cwd=self.project,
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def prepare(self, *arguments: str, **variables: str) -> tuple[int, str]:
        process = self.start(*arguments, **variables)
        output = process.communicate(timeout=60)[0]
        return process.returncode, output

    def calls(self, module: str) -> int:
        return sum(line.startswith(f"-m {module} ") for line in self.noted("python"))


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def test_venv_is_built_once_and_then_reused_silently(clone):
    code, output = clone.prepare()
    assert code == 0
    assert "venv is ready" in output
    assert clone.prepare() == (0, f"{clone.project}/.venv/bin/python\n")
    assert (clone.calls("venv"), clone.calls("pip")) == (1, 1)


def test_an_extra_is_added_and_stays(clone):
    clone.prepare()
    clone.prepare("dev")
    clone.prepare()
    assert (clone.calls("venv"), clone.calls("pip")) == (1, 2)
    assert any("--editable .[dev]" in line for line in clone.noted("python"))


def test_a_changed_pyproject_is_installed_again_with_the_same_extras(clone):
    clone.prepare("dev")
    with open(clone.project / "pyproject.toml", "a") as file:
        file.write("# changed\n")
    clone.prepare()
    clone.prepare()
    assert (clone.calls("venv"), clone.calls("pip")) == (1, 2)
    assert sum("--editable .[dev]" in line for line in clone.noted("python")) == 2


def test_a_failed_installation_is_shown_and_redone_from_scratch(clone):
    code, output = clone.prepare(PIP_EXIT="1")
    assert code == 1
    assert "Collecting mindspore" in output
    assert ".venv/install.log" in output
    (clone.project / ".venv/half-written").touch()
    assert clone.prepare()[0] == 0
    assert not (clone.project / ".venv/half-written").exists()


def test_an_installation_killed_midway_is_redone(clone):
    process = clone.start(PIP_SECONDS="0.5")
    while clone.calls("pip") == 0:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert clone.prepare()[0] == 0  # waits for the pip that was left behind
    assert (clone.calls("venv"), clone.calls("pip")) == (2, 2)


def test_a_moved_folder_and_a_broken_python_are_built_anew(clone):
    clone.prepare()
    moved = clone.folder / "moved"
    clone.project = clone.project.rename(moved)
    assert clone.prepare()[1].endswith(f"{moved}/.venv/bin/python\n")
    (moved / ".venv/bin/python").unlink()
    assert clone.prepare()[0] == 0
    assert (clone.calls("venv"), clone.calls("pip")) == (3, 3)


def test_a_venv_that_the_user_made_is_kept(clone):
    (clone.project / ".venv/bin").mkdir(parents=True)
    shutil.copy(clone.bin / "python", clone.project / ".venv/bin/python")
    (clone.project / ".venv/theirs").touch()
    assert clone.prepare()[0] == 0
    assert (clone.project / ".venv/theirs").exists()
    assert (clone.calls("venv"), clone.calls("pip")) == (0, 1)


WITHOUT_FLOCK = 'command() { [ "$2" != flock ] && builtin command "$@"; };'


@pytest.mark.parametrize("before", ["", WITHOUT_FLOCK], ids=["flock", "no-flock"])
def test_two_starts_at_once_install_once(clone, before):
    starts = [clone.start("", before, PIP_SECONDS="0.5") for _ in range(2)]
    assert [start.wait(timeout=60) for start in starts] == [0, 0]
    assert (clone.calls("venv"), clone.calls("pip")) == (1, 1)
    assert sum("waiting for it" in start.stdout.read() for start in starts) == 1


def test_without_flock_the_lock_of_a_dead_start_is_removed(clone):
    lock = clone.project / "build/venv.lock"
    lock.mkdir(parents=True)
    ended = subprocess.Popen(["true"])
    ended.wait()
    (lock / "owner").write_text(f"{os.uname().nodename} {ended.pid}\n")
    assert clone.prepare("", WITHOUT_FLOCK)[0] == 0
    assert not lock.exists()


def test_an_interpreter_that_only_exists_is_passed_over(clone):
    clone.put("python3", "#!/bin/sh\necho 'pyenv: python3: command not found' >&2; exit 127\n")
    clone.put("python3.12", "#!/bin/sh\necho 'is 3.12 without venv and ensurepip'\n")
    clone.put("python3.11", PYTHON)
    assert f"Creating .venv with {clone.bin}/python3.11." in clone.prepare()[1]


def test_when_no_interpreter_fits_all_that_were_tried_are_listed(clone):
    for name in ("python3", "python", "python3.12", "python3.11", "python3.10"):
        clone.put(name, "#!/bin/sh\necho 'is 3.9'\n")
    clone.put("python3.12", "#!/bin/sh\nexit 127\n")
    code, output = clone.prepare()
    assert code == 1
    assert "no Python 3.10 to 3.12 was found" in output
    assert "  python3 is 3.9\n  python3.12 does not run\n" in output
    assert "MINDPANGU_PYTHON" in output
