"""Ranks watch each other: they name a rank that fails, dies or hangs, but not one that ends normally."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mindpangu.errors import ParallelError
from mindpangu.parallel import watch as watch_module
from mindpangu.parallel import watcher
from mindpangu.parallel.watch import Watch, remove_earlier_jobs
from mindpangu.parallel.watcher import machine

PROJECT = Path(__file__).parents[2]
RANK = """
import ctypes, sys, time
from pathlib import Path
from mindpangu.errors import DataError
from mindpangu.parallel.watch import Watch

with Watch(Path(sys.argv[1]), int(sys.argv[2]), 2, float(sys.argv[3]), float(sys.argv[4])) as watch:
    watch.report_status(step=18)
    watch.report_status(doing="the sum of the gradients")
    exec(sys.argv[5])
"""
WAITS = "time.sleep(30)"
WAITS_WITH_THE_LOCK = "ctypes.PyDLL(None).sleep(30)"  # as MindSpore may: no thread of this process runs


def start(folder, rank=0, timeout=60.0, silent=60.0, does=WAITS):
    command = [sys.executable, "-c", RANK, *map(str, (folder, rank, timeout, silent, does))]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def other(folder, **state):
    """Writes the status file of rank 1."""
    usual = {"host": "elsewhere", "pid": 1, "step": 17, "doing": "upper_step", "beat": 1.0}
    (folder / "rank_1.json").write_text(json.dumps(usual | state))


def output_of(process, code=-signal.SIGKILL):
    """Waits for a rank, which must end within seconds, and returns the text that it printed."""
    text = process.communicate(timeout=20)[1]
    assert process.returncode == code, text
    return text


@pytest.mark.parametrize("does", [WAITS, WAITS_WITH_THE_LOCK])
def test_a_rank_that_fails_is_named_with_its_error(tmp_path, does):
    other(tmp_path, ended=True, error="DataError: shards are gone")
    assert output_of(start(tmp_path, does=does)) == (
        "mindpangu: error: rank 0: rank 1 on elsewhere failed: DataError: shards are gone (its last step was 17, doing "
        "upper_step)\n"
    )


@pytest.mark.parametrize("does", [WAITS, WAITS_WITH_THE_LOCK])
def test_a_killed_rank_is_named_by_the_other(tmp_path, does):
    one = start(tmp_path, 0, does=does)
    two = start(tmp_path, 1, does=does)
    wait_for(lambda: published(tmp_path, 1).get("doing") == "the sum of the gradients")
    two.kill()

    text = output_of(one)

    assert f"rank 0: rank 1 on {socket.gethostname()} (process {two.pid}) is dead; its last step was 18, doing" in text
    assert f"rank 1: (process {two.pid}) was killed, often because memory ran out, or crashed" in output_of(two)


def test_if_all_are_killed_at_once_the_first_one_is_named(tmp_path):
    """This is what msrun does: it kills the other ranks before they can find the cause."""
    one = start(tmp_path, 0)
    two = start(tmp_path, 1)
    wait_for(lambda: published(tmp_path, 1).get("step") == 18 and published(tmp_path, 0).get("step") == 18)
    two.kill()
    wait_for(lambda: published(tmp_path, 1).get("exited"))  # a busy machine may take a second to notice

    one.kill()

    assert f"rank 0: rank 1 on {socket.gethostname()} (process {two.pid}) is dead" in output_of(one)
    assert f"rank 1: (process {two.pid}) was killed" in output_of(two)


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def published(folder, rank):
    path = folder / f"rank_{rank}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def test_the_watcher_of_a_rank_that_died_elsewhere_reports_it(tmp_path):
    other(tmp_path, dead=True)
    assert "rank 1 on elsewhere (process 1) is dead" in output_of(start(tmp_path))


def test_a_dead_process_whose_watcher_died_too_is_noticed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()

    other(tmp_path, machine=machine(), pid=process.pid)

    assert f"(process {process.pid}) is dead; its last step was 17, doing upper_step" in output_of(start(tmp_path))


@pytest.mark.parametrize("where", ["another", "", None])
def test_a_process_of_a_machine_with_the_same_name_counts_as_alive(tmp_path, where):
    """As a container that shares its host's name, but not its process ids."""
    state = {} if where is None else {"machine": where}
    other(tmp_path, host=socket.gethostname(), pid=1 << 30, **state)

    assert output_of(start(tmp_path, does="time.sleep(1.5)"), 0) == ""


def test_a_silent_rank_is_reported_as_lost(tmp_path):
    other(tmp_path)
    assert "rank 1 on elsewhere has not been heard from for 1 s" in output_of(start(tmp_path, silent=1.0))


FAILS_BECAUSE_OF_RANK_1 = """
import json
state = {"host": "somewhere", "machine": %(machine)r, "pid": 1, "step": 17, "doing": "x", "beat": 1.0, "dead": True}
Path(sys.argv[1], "rank_1.json").write_text(json.dumps(state | {"exited": %(exited)r}))
raise RuntimeError("connection lost")
"""
HERE = machine()


@pytest.mark.parametrize(
    ("where", "exited", "is_blamed"),
    [
        ("elsewhere", [1e12, 0.0], True),
        ("elsewhere", [0.0, 1e12], False),
        (HERE, [0.0, 1e12], True),  # its wall clock jumped
        (HERE, [1e12, 0.0], False),
    ],
)
def test_a_rank_that_fails_names_the_one_that_died_before_it(tmp_path, where, exited, is_blamed):
    text = output_of(start(tmp_path, does=FAILS_BECAUSE_OF_RANK_1 % {"machine": where, "exited": exited}), 1)

    assert text.rstrip().endswith("RuntimeError: connection lost")
    assert ("mindpangu: error: rank 0: rank 1 on somewhere (process 1) is dead" in text) == is_blamed


def test_a_stopped_rank_is_named_after_the_timeout(tmp_path):
    other(tmp_path, stopped=True)
    text = output_of(start(tmp_path, timeout=1.5))

    assert "rank 1 on elsewhere (process 1) is stopped (SIGSTOP); kill -CONT continues it" in text


def test_a_stopped_rank_can_be_continued_at_any_time(tmp_path):
    process = start(tmp_path, timeout=1.5, does="time.sleep(1)")
    wait_for(lambda: published(tmp_path, 0).get("step") == 18)
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: published(tmp_path, 0).get("stopped"))
    time.sleep(2.5)

    process.send_signal(signal.SIGCONT)

    assert output_of(process, 0) == ""


def test_an_activity_that_takes_too_long_is_named(tmp_path):
    other(tmp_path)
    text = output_of(start(tmp_path, timeout=1.5, does=WAITS_WITH_THE_LOCK))

    assert "rank 0: the sum of the gradients in step 18 takes longer than 2 s (parallelism.timeout)" in text


@pytest.mark.parametrize("error", [None, "ended, because rank 2 failed: …"])
def test_ranks_that_end_normally_or_because_of_another_are_not_reported(tmp_path, error):
    other(tmp_path, ended=True, error=error)

    assert output_of(start(tmp_path, does="time.sleep(1.5)"), 0) == ""
    assert published(tmp_path, 0)["ended"]


def test_a_ranks_own_error_is_published_and_ends_the_process(tmp_path):
    text = output_of(start(tmp_path, does="raise DataError('no shards')"), 1)

    assert text == "mindpangu: error: rank 0: no shards\n"
    assert published(tmp_path, 0)["error"] == "DataError: no shards"


def test_ctrl_c_is_published_as_keyboard_interrupt(tmp_path):
    process = start(tmp_path)
    wait_for(lambda: published(tmp_path, 0).get("step") == 18)
    process.send_signal(signal.SIGINT)

    output_of(process, -signal.SIGINT)

    assert published(tmp_path, 0)["error"] == "KeyboardInterrupt: "


def test_a_rank_continues_when_its_watcher_is_killed(tmp_path):
    process = start(tmp_path, does="[(time.sleep(0.02), watch.report_status(step=step)) for step in range(150)]")
    wait_for(lambda: published(tmp_path, 0))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()

    os.kill(int(children[0]), signal.SIGKILL)

    assert output_of(process, 0) == ""


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Replaces the watcher's process; the result has its command, its options, and, as `reports`, what it was told."""
    found = SimpleNamespace(waited=[], reports=lambda: list(map(json.loads, reader.read().splitlines())))
    descriptors = os.pipe()
    reader = os.fdopen(descriptors[0], "rb")

    def start(command, **options):
        found.command = command
        found.options = options
        return SimpleNamespace(stdin=os.fdopen(descriptors[1], "wb"), wait=found.waited.append)

    monkeypatch.setattr(watch_module.subprocess, "Popen", start)
    yield found
    reader.close()


def test_a_watcher_is_told_what_its_rank_does(tmp_path, told):
    with Watch(tmp_path / "a" / "job", 3, 8, 1800.0) as watch:
        watch.report_status(18, "the update")
        watch.report_status(doing="")
        watch.report_status(step=0)
    watch.report_status(doing="nothing that anyone watches")

    arguments = (tmp_path / "a" / "job", 3, 8, 1800.0, 60.0, os.getpid())
    assert told.command == [sys.executable, watcher.__file__, *map(str, arguments)]
    assert told.options == {"stdin": subprocess.PIPE, "start_new_session": True}
    assert told.reports() == [
        {"step": 18, "doing": "the update"},
        {"doing": ""},
        {"step": 0},
        {"ended": True, "error": None},
    ]
    assert told.waited == [10.0]
    assert (tmp_path / "a" / "job").is_dir()


@pytest.mark.parametrize(
    ("error", "published_error", "exits"),
    [
        (ParallelError("no scheduler"), "ParallelError: no scheduler", [1]),
        (ValueError("中" * 1000), f"ValueError: {'中' * 1000}"[:500], []),
    ],
)
def test_the_error_of_a_rank_is_cut_and_ends_it_at_once_if_it_is_one_for_users(
    tmp_path, told, monkeypatch, capsys, error, published_error, exits
):
    """A pipe writes a line of up to 4,096 bytes completely or not at all."""
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)

    with pytest.raises(type(error)), Watch(tmp_path, 3, 8, 1800.0):
        raise error

    assert told.reports()[-1] == {"ended": True, "error": published_error}
    assert codes == exits
    assert capsys.readouterr().err == ("mindpangu: error: rank 3: no scheduler\n" if exits else "")


def test_a_watcher_that_is_stopped_or_killed_holds_up_no_rank(tmp_path, monkeypatch):
    monkeypatch.setattr(watch_module, "_WATCHER_EXIT_S", 0.1)
    started = time.monotonic()

    with Watch(tmp_path, 0, 2, 60.0) as watch:
        process = watch._watcher
        process.send_signal(signal.SIGSTOP)
        for step in range(2000):  # more than a pipe holds
            watch.report_status(step, "the update of the dense parameters and of the experts")
    process.kill()
    process.wait()

    assert time.monotonic() - started < 10


def test_a_single_process_is_not_watched(tmp_path):
    with Watch(tmp_path / "none", 0, 1, 0.0):
        time.sleep(0.01)
    assert not (tmp_path / "none").exists()


def test_only_folders_of_jobs_that_have_ended_are_removed(tmp_path):
    ended = tmp_path / f"job-{'0' * 16}"
    alive = tmp_path / f"job-{'1' * 16}"
    for path in (ended, alive, tmp_path / "mine"):
        path.mkdir()
        (path / "rank_0.json").write_text("{}")
    (tmp_path / f"job-{'2' * 16}").symlink_to(tmp_path / "mine")
    lock_of_another = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from mindpangu.locks import locked\n"
            "with locked(Path(sys.argv[1])): print(flush=True); sys.stdin.read()",
            str(alive),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )
    lock_of_another.stdout.readline()

    remove_earlier_jobs(tmp_path)

    lock_of_another.communicate()
    assert sorted(path.name for path in tmp_path.iterdir()) == [alive.name, f"job-{'2' * 16}", "mine"]
    assert (tmp_path / "mine" / "rank_0.json").exists()


def test_nothing_is_removed_through_a_link(tmp_path):
    """A run folder from elsewhere may have one in place of its watch files."""
    precious = tmp_path / "precious"
    (precious / f"job-{'0' * 16}").mkdir(parents=True)
    (tmp_path / ".watch").symlink_to(precious)

    with pytest.raises(ParallelError, match=r"\.watch is a link, and mindpangu would delete files .*; remove the link"):
        remove_earlier_jobs(tmp_path / ".watch")

    assert len(list(precious.iterdir())) == 1
