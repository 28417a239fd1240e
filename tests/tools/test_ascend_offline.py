"""tools/ascend_offline compiles an Ascend graph with the AscendC operators, without NPU and CANN."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

from ascend_offline import acl_headers, cann_stub, operator_package  # noqa: E402

OPERATORS = ("RreDispatch", "RreGatherRows", "RreRegroup", "RreRegroupBack", "RreCombine", "RreScatterRows")


def compile_operators(*arguments):
    command = [sys.executable, str(TOOLS / "ascend_offline" / "compile_operators.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    """Skips where MindSpore has no Ascend plugin, or the compiler's tools are missing."""
    try:
        return cann_stub.build(tmp_path_factory.mktemp("stubs"))
    except cann_stub.StubError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_stubs_name_the_libraries_of_cann(stubs):
    assert any(name.startswith("libascendcl") for name in stubs)


@pytest.mark.slow
def test_without_headers_the_composed_forms_compile_and_a_line_says_so(stubs, tmp_path):
    if acl_headers.find(tmp_path) is not None:
        pytest.skip("this machine has the headers of ACL")

    done = compile_operators("--cache", str(tmp_path))

    assert done.returncode == 0, done.stderr
    assert "so the composed forms were compiled" in done.stdout
    assert "composed (linear, rre_combine, rre_dispatch, rre_regroup)" in done.stdout
    assert "AlltoAllV × 8" in done.stdout
    assert "Rre" not in done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["ascend910", "ascend910b"])
def test_every_operator_is_in_the_graph(stubs, chip, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "acl"
    if acl_headers.find(folder, download=True) is None:
        pytest.skip(f"no headers of ACL: found neither CANN nor {acl_headers.WHEEL}")

    done = compile_operators("--chip", chip, "--cache", str(folder))

    assert done.returncode == 0, done.stderr
    for name in (*OPERATORS, "GroupedMatmul", "AlltoAllV"):
        assert f"{name} × " in done.stdout, done.stdout


def test_a_package_has_the_definitions_of_every_operator(tmp_path):
    operator_package.write(tmp_path, "ascend910")

    text = next(tmp_path.rglob("aic-*-ops-info.json")).read_text()
    for name in OPERATORS:
        assert f'"{name}"' in text
