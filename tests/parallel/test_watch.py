"""Watching ranks: who fails, dies or hangs is named by all others; who ends well is not."""

import json
import subprocess
import sys
import threading
import time

import pytest

from mindpangu.errors import DataError
from mindpangu.parallel import watch as module
from mindpangu.parallel.watch import Watch


class Ends:
    """Stands for os._exit."""

    def __init__(self):
        self.codes, self.called = [], threading.Event()

    def __call__(self, code):
        self.codes.append(code)
        self.called.set()


@pytest.fixture
def end():
    return Ends()


def other(folder, **state):
    """The file of rank 1."""
    usual = {
        "host": "elsewhere",
        "pid": 1,
        "step": 17,
        "doing": "upper_step",
        "beat": 1.0,
        "ended": False,
        "error": None,
    }
    (folder / "rank_1.json").write_text(json.dumps(usual | state))


def watching(folder, end, capsys, timeout=60.0, seconds=5.0):
    """What rank 0 of 2 says before it ends its process."""
    with Watch(folder, 0, 2, timeout, end) as mine:
        mine.now(step=18, doing="the sum of the gradients")
        end.called.wait(seconds)
    return capsys.readouterr().err


def test_a_rank_that_fails_is_named_with_its_error(tmp_path, end, capsys):
    other(tmp_path, ended=True, error="DataError: shards are gone")
    said = watching(tmp_path, end, capsys)
    assert said.startswith(
        "mindpangu: error: rank 0: rank 1 on elsewhere failed: DataError: shards are gone (its last "
    )
    assert "step was 17, doing upper_step" in said
    assert end.codes == [1]


def test_a_dead_process_is_noticed(tmp_path, end, capsys):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    other(tmp_path, host=module.socket.gethostname(), pid=process.pid)
    said = watching(tmp_path, end, capsys)
    assert f"(process {process.pid}) is dead; its last step was 17, doing upper_step" in said


def test_a_silent_rank_is_lost(tmp_path, end, capsys, monkeypatch):
    monkeypatch.setattr(module, "_SILENT_S", 1.0)
    other(tmp_path)
    assert "rank 1 on elsewhere has not been heard of for 1 s" in watching(tmp_path, end, capsys)


def test_what_takes_too_long_is_named(tmp_path, end, capsys):
    other(tmp_path)
    said = watching(tmp_path, end, capsys, timeout=0.8)
    assert "rank 0: the sum of the gradients in step 18 takes longer than 1 s (parallelism.timeout)" in said


def test_ranks_that_end_well_are_left_alone(tmp_path, end, capsys):
    other(tmp_path, ended=True)
    assert watching(tmp_path, end, capsys, seconds=1.5) == ""
    assert end.codes == []
    assert json.loads((tmp_path / "rank_0.json").read_text())["ended"]


def test_only_the_first_error_travels(tmp_path, end, capsys):
    """A rank that ended because of another is no news."""
    other(tmp_path, ended=True, error="ended, because rank 2 failed: …")
    assert watching(tmp_path, end, capsys, seconds=1.5) == ""


def test_an_error_of_ones_own_is_told_and_ends_the_process(tmp_path, end, capsys):
    with pytest.raises(DataError), Watch(tmp_path, 0, 2, 60, end):
        raise DataError("no shards")
    assert json.loads((tmp_path / "rank_0.json").read_text())["error"] == "DataError: no shards"
    assert capsys.readouterr().err == "mindpangu: error: rank 0: no shards\n"
    assert end.codes == [1]


def test_one_process_needs_no_watching(tmp_path, end):
    with Watch(tmp_path / "none", 0, 1, 0.0, end):
        time.sleep(0.01)
    assert not (tmp_path / "none").exists()
