"""build_opp.sh: its errors, and the files that it passes to MindSpore's custom_compiler, here a stand-in."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "ascend_ops" / "build_opp.sh"

COMPILER = """
import argparse, os, shutil
parser = argparse.ArgumentParser()
for name in "op_host_path op_kernel_path soc_version ascend_cann_package_path vendor_name install_path".split():
    parser.add_argument("--" + name)
arguments = parser.parse_args()
if os.environ.get("BUILD_FAILS"):
    open("build.log", "w").write("ccec: error")
    raise SystemExit(1)
package = os.path.join(arguments.install_path, "vendors", arguments.vendor_name)
shutil.copytree(arguments.op_host_path, os.path.join(package, "op_host"))
shutil.copytree(arguments.op_kernel_path, os.path.join(package, "op_kernel"))
open(os.path.join(package, "soc"), "w").write(arguments.soc_version)
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def host(tmp_path):
    """Prepares a host with CANN 8.3 and MindSpore; `host(*arguments, **environment)` runs the script."""
    cann = tmp_path / "cann"
    for part in ("customize", "common"):
        (cann / "tools" / "op_project_templates" / "ascendc" / part).mkdir(parents=True)
    script = cann / "tools/op_project_templates/ascendc/customize/cmake/util/ascendc_impl_build.py"
    write(script, "init_value_list = op.output_init_value")
    (cann / "version.cfg").write_text("toolkit_running_version=[8.3.RC1:8.3.RC1]\n")
    mindspore = tmp_path / "site" / "mindspore"
    compiler = mindspore / "lib" / "plugin" / "ascend" / "custom_compiler"
    compiler.mkdir(parents=True)
    (mindspore / "__init__.py").write_text("")
    (compiler / "setup.py").write_text(COMPILER)

    def run(*arguments, **environment):
        named = {"PATH": os.environ["PATH"], "ASCEND_HOME_PATH": str(cann), "PYTHONPATH": str(tmp_path / "site")}
        command = ["bash", str(SCRIPT), "--output", str(tmp_path / "opp"), *arguments]
        return subprocess.run(command, env=named | environment, capture_output=True, text=True)

    run.cann = cann
    run.script_of_template = script
    run.package = tmp_path / "opp" / "vendors" / "mindpangu"
    return run


def test_all_operators_and_what_they_share_are_built(host):
    done = host()

    assert done.returncode == 0, done.stderr
    assert f"export ASCEND_CUSTOM_OPP_PATH={host.package}" in done.stdout
    kernels = {path.name for path in (host.package / "op_kernel").iterdir()}
    assert {"rre_dispatch.cpp", "rre_gather_rows.cpp", "rre_combine.cpp", "rre_regroup.cpp"} <= kernels
    assert {"rre_kernel.h", "rre_limits.h"} <= kernels
    hosts = {path.name for path in (host.package / "op_host").iterdir()}
    assert {"rre_dispatch.cpp", "rre_move_rows.cpp", "rre_combine.cpp", "rre_regroup.cpp"} <= hosts
    assert {"rre_host.h", "rre_limits.h"} <= hosts
    assert (host.package / "soc").read_text() == "ascend910;ascend910b;ascend910_93"


def test_one_chip_can_be_chosen(host):
    assert host("--soc", "ascend910").returncode == 0
    assert (host.package / "soc").read_text() == "ascend910"


@pytest.mark.skipif(Path("/usr/local/Ascend").exists(), reason="this host may have CANN")
def test_a_missing_cann_is_named(host, tmp_path):
    done = host(ASCEND_HOME_PATH=str(tmp_path / "missing"))

    assert done.returncode == 1
    assert done.stderr.startswith("build_opp: no CANN here: source its set_env.sh")


def test_an_old_cann_is_refused(host):
    (host.cann / "version.cfg").write_text("Version=7.0.0\n")
    assert "build_opp: CANN 7.0 is too old: MindSpore 2.10 takes 8.2 or newer" in host().stderr


def test_a_missing_mindspore_is_named(host):
    assert "has no MindSpore: activate its environment" in host(PYTHONPATH="", MINDPANGU_PYTHON="/usr/bin/env").stderr


def test_a_failed_build_names_its_log(host):
    done = host(BUILD_FAILS="1")

    assert done.returncode == 1
    assert f"its log is in {host.package.parents[1]}: build.log" in done.stderr
    assert (host.package.parents[1] / "build.log").read_text() == "ccec: error"


def test_a_toolkit_without_the_template_is_refused(host):
    (host.cann / "tools" / "op_project_templates" / "ascendc" / "common").rmdir()

    done = host()

    assert done.returncode == 1
    assert "ascendc/customize and common: install the toolkit" in done.stderr


def test_a_template_that_drops_initial_values_is_refused(host):
    host.script_of_template.write_text("def parse(line): ...")

    done = host()

    assert done.returncode == 1
    assert f"{host.script_of_template} does not know output_init_value: this CANN would drop the initial" in done.stderr
    assert not host.package.exists()


@pytest.mark.parametrize("place", ["compiler", "x86_64-linux", "x86_64-linux/compiler"])
def test_the_script_may_be_among_the_cmake_modules_of_cann(host, place):
    host.script_of_template.unlink()
    script = host.cann / place / "tikcpp/ascendc_kernel_cmake/fwk_modules/util/ascendc_impl_build.py"

    write(script, "init_value_list = op.output_init_value")
    assert host().returncode == 0

    write(script, "def parse(line): ...")
    done = host()
    assert done.returncode == 1
    assert f"{script} does not know output_init_value" in done.stderr


def test_an_old_sample_project_is_checked_too(host):
    (host.cann / "tools/op_project_templates/ascendc/common").rmdir()
    sample = host.cann / "tools/msopgen/template/operator_demo_projects/ascendc_operator_sample"
    script = sample / "cmake/util/ascendc_impl_build.py"

    write(script, "init_value_list = op.output_init_value")
    assert host().returncode == 0

    write(script, "def parse(line): ...")
    assert f"{script} does not know output_init_value" in host().stderr


def test_a_cann_without_the_script_is_refused(host):
    host.script_of_template.unlink()

    done = host()

    assert done.returncode == 1
    assert "no ascendc_impl_build.py in" in done.stderr


def test_a_temporary_folder_with_a_blank_is_refused(host, tmp_path):
    odd = tmp_path / "a b"
    odd.mkdir()

    done = host(TMPDIR=str(odd))

    assert done.returncode == 1
    assert "set TMPDIR to a plain path" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--soc", "ascend910;910c"], "--soc 910c is not known; allowed: ascend910, "),
        (["--soc"], "--soc needs a value"),
        (["--chip"], "unknown argument --chip"),
    ],
)
def test_wrong_arguments_are_named(host, arguments, words):
    done = host(*arguments)

    assert done.returncode == 1
    assert words in done.stderr
