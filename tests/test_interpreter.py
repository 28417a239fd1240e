"""MindSpore's reports of failed compilations appear neither in the working directory nor anywhere for long."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindpangu.interpreter import divert_compiler_reports

PROJECT = Path(__file__).parents[1]

FAILS = """
import os
import mindspore as ms
from mindspore import ops
from mindpangu.interpreter import divert_compiler_reports

@ms.jit
def product(a, b):
    return ops.matmul(a, b)

with divert_compiler_reports():
    try:
        product(ms.Tensor([[1.0, 2.0]]), ms.Tensor([[1.0, 2.0]]))
    except RuntimeError:
        print(os.path.exists(f"{os.environ['MS_OM_PATH']}/rank_0/om/analyze_fail.ir"))
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("MS_OM_PATH", raising=False)
    return tmp_path


def write_report():
    path = Path(os.environ["MS_OM_PATH"], "rank_0", "om", "analyze_fail.ir")
    path.parent.mkdir(parents=True)
    path.write_text("a graph")


def test_mindspore_writes_its_report_to_the_diverted_folder(temporary):
    here = temporary / "here"
    here.mkdir()
    script = here / "fails.py"
    script.write_text(FAILS)

    done = subprocess.run(
        [sys.executable, script],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(PROJECT), "GLOG_v": "4"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == "True\n"
    assert list(temporary.iterdir()) == [here]
    assert list(here.iterdir()) == [script]


def test_a_report_is_removed_at_the_end_but_stays_for_a_traceback(temporary):
    with divert_compiler_reports():
        write_report()
    assert not list(temporary.iterdir())

    with pytest.raises(RuntimeError), divert_compiler_reports():
        write_report()
        raise RuntimeError("see the report")

    (folder,) = temporary.iterdir()
    assert (folder / "rank_0" / "om" / "analyze_fail.ir").exists()
    assert "MS_OM_PATH" not in os.environ


def test_a_folder_that_the_user_chose_stays(temporary, monkeypatch):
    monkeypatch.setenv("MS_OM_PATH", str(temporary / "mine"))

    with divert_compiler_reports():
        write_report()

    assert (temporary / "mine" / "rank_0").exists()


def test_a_child_process_has_a_folder_of_its_own(temporary):
    """It outlives a parent that is killed, which then removes nothing."""
    with divert_compiler_reports():
        of_parent = os.environ["MS_OM_PATH"]
        with divert_compiler_reports():
            assert os.environ["MS_OM_PATH"] != of_parent
            write_report()

        assert os.environ["MS_OM_PATH"] == of_parent
        assert not list(temporary.iterdir())
