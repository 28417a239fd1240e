"""recipes/run_910.sh runs the stages of the main job in order: on the CPU, on one NPU, and on a cluster with msrun."""

import re
import socket
from dataclasses import fields
from unittest.mock import ANY

import pytest
from stand_ins import PROJECT, PYTHON, without_ascend

from mindpangu.config import Config

GENERATE_STAGE = "generate --every-domain --temperature 0.6 --top-k 20"
STAGES = ["tokenizer train", "data prepare", "routing build", "train", "evaluate", GENERATE_STAGE]

# ---- Without NPUs ----------------------------------------------------------------------------------------------------


@without_ascend
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
        machine.add_program("npu-smi")
    if cann:
        machine.variables["ASCEND_HOME_PATH"] = str(machine.cann)

    done = machine.run()

    assert done.returncode == 0
    lines = [line for line in done.stdout.splitlines() if "falling back to the CPU" in line]
    assert len(lines) == 1
    assert lines[0].startswith(reason)
    assert lines[0].endswith("recipes/cpu_smoke.yaml.")


@without_ascend
def test_an_npu_smi_that_finds_no_card_counts_as_no_npu(machine):
    machine.add_program("npu-smi", "#!/bin/sh\nexit 1\n")

    assert machine.run().stdout.startswith("No NPU and no CANN here")


def test_every_stage_gets_the_configuration_and_the_overrides(machine):
    done = machine.run("--training.steps", "20", "--data.seed=3", "--config", "recipes/cpu_smoke.yaml")

    assert done.returncode == 0
    options = "--config=recipes/cpu_smoke.yaml --training.steps=20 --data.seed=3"
    assert machine.log_lines("verbs") == [f"{stage} {options}" for stage in STAGES]


@pytest.mark.parametrize("option", ["--resume", "--load=output/old/checkpoint"])
def test_resume_and_load_reach_training_only(machine, option):
    assert machine.run(option).returncode == 0
    with_option = [verb for verb in machine.log_lines("verbs") if option in verb]
    assert with_option == [f"train --config=recipes/cpu_smoke.yaml {option}"]


@pytest.mark.parametrize("written_by", ["train", "extract"])
def test_load_uses_the_routing_table_and_the_tokenizer_of_the_checkpoint(machine, tmp_path, written_by):
    """Training keeps them in the run folder; the lifecycle's verbs write them into the iteration."""
    weights = tmp_path / "weights"
    parent = weights if written_by == "train" else weights / "iteration_00000150"
    for name in ("routing", "tokenizer"):
        (parent / name).mkdir(parents=True)
    (parent / "tokenizer" / "main.model").touch()

    assert machine.run("--load", str(weights)).returncode == 0

    (verb,) = [verb for verb in machine.log_lines("verbs") if "--load" in verb]
    assert f"--routing.table={parent}/routing" in verb
    assert f"--data.tokenizer={parent}/tokenizer/main.model" in verb


@pytest.mark.parametrize("verb", ["tokenizer", "data", "routing", "train", "evaluate", "generate"])
def test_a_failing_stage_ends_the_job_with_its_exit_code(machine, verb):
    done = machine.run(BAD_VERB=verb)

    assert done.returncode == 7
    assert machine.log_lines("verbs")[-1].split()[0] == verb


@without_ascend
def test_a_configuration_for_npus_is_refused_without_them_before_anything_starts(machine):
    done = machine.run("--config", "recipes/pangu_sigma_node.yaml", DEVICE="Ascend")

    assert done.returncode == 1
    assert "recipes/pangu_sigma_node.yaml asks for context.device_target Ascend. No NPU" in done.stderr
    assert machine.log_lines("verbs") == []


def test_a_configuration_is_looked_up_in_the_current_folder_first(machine, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    (here / "my.yaml").touch()

    assert machine.run("--config", "my.yaml", cwd=here).returncode == 0

    assert machine.log_lines("verbs")[0].endswith(f"--config={here}/my.yaml")


def test_the_projects_recipes_are_found_from_anywhere(machine, tmp_path):
    assert machine.run("--config", "recipes/cpu_smoke.yaml", cwd=tmp_path).returncode == 0

    assert machine.log_lines("verbs")[0].endswith("--config=recipes/cpu_smoke.yaml")


def test_the_message_for_a_missing_configuration_names_both_folders(machine, tmp_path):
    done = machine.run("--config", "my.yaml", cwd=tmp_path)

    assert done.returncode == 1
    assert done.stderr == f"error: there is no file my.yaml in {tmp_path} and none in {PROJECT}\n"
    assert machine.log_lines("python") == []


@pytest.mark.parametrize("name", ["my.yaml", "my [1] $x*.yaml", "-my.yaml", "~my.yaml"])
def test_a_configuration_may_have_any_name(machine, tmp_path, name):
    here = tmp_path / "a [b] c"
    here.mkdir()
    (here / name).touch()

    assert machine.run(f"--config={name}", cwd=here).returncode == 0

    assert machine.log_lines("verbs")[0].endswith(f"--config={here}/{name}")


def test_a_tilde_is_the_home_folder_even_after_an_equals_sign(machine):
    home = machine.folder
    (home / "my.yaml").touch()
    (home / "weights/routing").mkdir(parents=True)

    assert machine.run("--config=~/my.yaml", "--load=~/weights").returncode == 0

    (verb,) = [verb for verb in machine.log_lines("verbs") if "--load" in verb]
    assert verb == f"train --config={home}/my.yaml --routing.table={home}/weights/routing --load={home}/weights"


def test_a_value_that_is_not_a_path_stays_as_it_is(machine, tmp_path):
    """Although the folder in which the user stands has something of this name."""
    for name in ("mine", "20"):
        (tmp_path / name).mkdir()
    options = ["--training.run_name", "mine", "--training.steps", "20", "--training.train=--all"]

    assert machine.run(*options, cwd=tmp_path).returncode == 0

    assert machine.log_lines("verbs")[0].endswith("--training.run_name=mine --training.steps=20 --training.train=--all")


def test_the_script_knows_the_keys_that_hold_one_path():
    script = (PROJECT / "recipes/run_910.sh").read_text(encoding="utf-8")
    (line,) = re.findall(r"^ +(--data\.tokenizer \|.*)\)$", script, re.MULTILINE)

    keys = [
        f"--{section.name}.{item.name}"
        for section in fields(Config)
        for item in fields(section.type)
        if item.type is str and item.metadata.get("path")
    ]
    assert sorted(line.split(" | ")) == sorted(keys)


def test_other_paths_are_looked_up_in_the_current_folder_first(machine, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "my.model").touch()
    options = ["--load", "weights", "--data.tokenizer", "my.model", "--training.output_dir=~/runs"]

    assert machine.run(*options, cwd=tmp_path).returncode == 0

    (verb,) = [verb for verb in machine.log_lines("verbs") if "--load" in verb]
    home = machine.folder
    paths = f"--data.tokenizer={tmp_path}/my.model --training.output_dir={home}/runs --load={tmp_path}/weights"
    assert verb.endswith(paths)


def test_the_variables_of_another_jobs_rank_do_not_reach_a_stage(machine):
    machine.add_program("python", PYTHON.replace("shift 2\n", 'shift 2; env >> "$LOGS/env"\n'))

    done = machine.run(RANK_ID="3", RANK_SIZE="4", MS_ROLE="MS_WORKER")

    assert done.returncode == 0
    assert done.stderr.count("RANK_ID=3 RANK_SIZE=4 MS_ROLE=MS_WORKER") == 1
    assert not [line for line in machine.log_lines("env") if line.startswith(("RANK_", "MS_ROLE"))]


@pytest.mark.parametrize("arguments", [["--resum"], ["steps"], ["--config"], ["--training.steps"], ["--steps=3"]])
def test_a_wrong_option_is_named(machine, arguments):
    done = machine.run(*arguments)

    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert arguments[0].split("=")[0] in done.stderr
    assert machine.log_lines("python") == []


def test_help_names_every_option_and_variable_and_starts_nothing(machine):
    script = (PROJECT / "recipes/run_910.sh").read_text(encoding="utf-8")
    options = ("--config", "--resume", "--load")
    variables = ("MINDPANGU_PYTHON", "PIP_FIND_LINKS", "NPROC", "NNODES", "NODE_RANK")
    with_default = ("HCCL_CONNECT_TIMEOUT", "HCCL_BUFFSIZE", "HCCL_EXEC_TIMEOUT", "HCCL_DETERMINISTIC", "MASTER_PORT")

    done = machine.run("--help")

    assert done.returncode == 0
    for name in (*options, *variables, *with_default):
        assert name in done.stdout
    for name in with_default:
        assert f"{name}:-" in script
    assert machine.log_lines("python") == []


# ---- With NPUs -------------------------------------------------------------------------------------------------------


def test_one_node_prepares_then_starts_msrun_over_all_its_npus(cluster):
    done = cluster.run("--training.steps", "5", "--resume", ASCEND_RT_VISIBLE_DEVICES="0,1,2,3,4,5,6,7")

    assert done.returncode == 0, done.stderr
    options = "--config=recipes/pangu_sigma_node.yaml --training.steps=5"
    assert cluster.log_lines("verbs") == [f"{stage} {options}" for stage in STAGES[:3]]
    assert cluster.msrun_options() == {
        "worker_num": "8",
        "local_worker_num": "8",
        "node_rank": "0",
        "master_addr": "127.0.0.1",
        "master_port": ANY,  # a free one
        "cluster_time_out": "600",
        "log_dir": f"{cluster.folder}/run/msrun_log",
        "join": "True",
        "tail_worker_log": "0",
    }
    program = cluster.log_lines("msrun")[len(cluster.msrun_options()) :]
    assert program == ["python", "-m", "mindpangu", "train", *options.split(), "--resume"]
    assert cluster.log_lines("worker") == [str(cluster.bin / "python")]
    assert {
        "HCCL_CONNECT_TIMEOUT=1200",
        "HCCL_EXEC_TIMEOUT=3600",
        "HCCL_BUFFSIZE=200",
        "HCCL_DETERMINISTIC=false",
        "ASCEND_RT_VISIBLE_DEVICES=0,1,2,3,4,5,6,7",
        "GLOG_v=3",
    } <= set(cluster.log_lines("env"))
    assert "falling back" not in done.stdout
    assert "HCCL_SOCKET_IFNAME" not in done.stderr


def test_the_second_of_two_nodes_joins_the_first(cluster):
    done = cluster.run(NNODES="2", NODE_RANK="1", MASTER_ADDR="10.0.0.1", MASTER_PORT="9000", NPROC="4")

    assert done.returncode == 0, done.stderr
    options = cluster.msrun_options()
    assert (options["worker_num"], options["local_worker_num"], options["node_rank"]) == ("8", "4", "1")
    assert (options["master_addr"], options["master_port"]) == ("10.0.0.1", "9000")
    assert options["tail_worker_log"] == "4"
    assert "ASCEND_RT_VISIBLE_DEVICES=0,1,2,3" in cluster.log_lines("env")
    assert done.stderr.count("HCCL_SOCKET_IFNAME") == 1


def test_variables_of_the_user_override_the_scripts_settings(cluster):
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
    assert {f"{name}={value}" for name, value in settings.items()} <= set(cluster.log_lines("env"))
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
    assert cluster.log_lines("verbs") == []


def test_a_port_in_use_is_named_before_msrun_starts(cluster):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])

        done = cluster.run(MASTER_PORT=port)

    assert done.returncode == 1
    assert (
        done.stderr == f"error: MASTER_PORT {port} is in use on this machine: set another one, the same on all nodes\n"
    )
    assert cluster.log_lines("msrun") == []


def test_msruns_reason_is_shown_if_no_rank_gives_one(cluster, tmp_path):
    done = cluster.run(MSRUN_EXIT="9", MSRUN_SAYS="no such network", RUN_FOLDER=str(tmp_path))

    assert done.returncode == 9
    assert done.stderr.startswith("no such network\n")
    assert (tmp_path / "msrun_log" / "msrun_0.log").read_text() == "no such network\n"


def test_one_npu_needs_no_msrun_and_runs_all_stages(cluster):
    assert cluster.run(NPROC="1").returncode == 0

    assert cluster.log_lines("msrun") == []
    assert [verb.split()[0] for verb in cluster.log_lines("verbs")] == [stage.split()[0] for stage in STAGES]


def test_a_configuration_for_the_cpu_leaves_the_npus_idle(cluster):
    done = cluster.run("--config", "recipes/cpu_smoke.yaml", DEVICE="CPU")

    assert done.returncode == 0
    assert "the NPUs stay idle" in done.stdout
    assert cluster.log_lines("msrun") == []


def test_the_job_ends_with_the_exit_code_of_msrun(cluster):
    assert cluster.run(MSRUN_EXIT="9").returncode == 9


def test_workers_that_would_use_another_python_are_refused(cluster):
    cluster.add_program("python", "#!/bin/sh\necho another\n")

    done = cluster.run(MINDPANGU_PYTHON=str(cluster.bin / "python3"))

    assert done.returncode == 1
    assert "msrun starts workers as 'python'" in done.stderr
