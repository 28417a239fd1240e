"""A watcher publishes its rank's state and finds the first problem of others: its loop on a simulated clock."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from mindpangu.parallel import watcher as module
from mindpangu.parallel.watcher import Watcher

START = 100.0
PID = 4242


class Timeline:
    """A clock that only waiting moves, and what happens at its times.

    Attributes:
        now: seconds since the start.
        events: [(seconds since the start, function)], in order.
    """

    def __init__(self, events):
        self.now = 0.0
        self.events = list(events)

    def monotonic(self):
        return START + self.now

    def time(self):
        return 1000 * START + self.now

    def sleep(self, seconds):
        self.now += seconds

    def select(self, readable, writable, exceptional, seconds):
        """Waits as `select.select` does, until something has happened."""
        assert seconds >= 0  # as the real one demands
        if self.events and self.events[0][0] <= self.now + seconds:
            at, happen = self.events.pop(0)
            self.now = max(self.now, at)
            happen()
            return select.select(readable, writable, exceptional, 0)
        self.now += seconds
        assert self.now < 1000, "the watcher never ends"
        return [], [], []


@pytest.fixture
def watch(tmp_path, monkeypatch):
    """watch(events, ranks, timeout, silent) returns (problem that the watcher of rank 0 finds, when).

    An event is (seconds, what): reports of the rank as a dict or bytes, None when the rank exits, or a function. Its
    time is in eighths of a second, which add up exactly.
    """
    monkeypatch.setattr(module, "machine", lambda: "here")
    monkeypatch.setattr(module, "_state_of", lambda pid: {PID: "S"}.get(pid, ""))

    def run(events, ranks=2, timeout=1000.0, silent=1000.0):
        reader, writer = os.pipe()

        def event(what):
            if callable(what):
                return what
            if what is None:
                return lambda: os.close(writer)
            return lambda: os.write(writer, what if isinstance(what, bytes) else json.dumps(what).encode() + b"\n")

        timeline = Timeline((at, event(what)) for at, what in events)
        monkeypatch.setattr(module, "time", timeline)
        monkeypatch.setattr(module, "select", timeline)
        watcher = Watcher(tmp_path, 0, ranks, timeout, silent, PID)
        problem = watcher.watch(reader)
        os.close(reader)
        if any(what is None for _, what in events) == bool(timeline.events):
            os.close(writer)
        return problem, timeline.now

    return run


@pytest.fixture
def other(tmp_path):
    """other(rank, **state) writes the file of another rank."""

    def write(rank=1, **state):
        usual = {"host": "elsewhere", "machine": "there", "pid": 7, "step": 17, "doing": "upper_step", "beat": 1.0}
        (tmp_path / f"rank_{rank}.json").write_text(json.dumps(usual | state))

    return write


def published(folder):
    return json.loads((folder / "rank_0.json").read_text())


def test_a_rank_is_published_as_it_has_reported(watch, tmp_path):
    """A report counts once its line is complete."""
    seen = []
    events = [
        (0.25, {"step": 18}),
        (0.75, b'{"step": 19}\n{"doing": "the '),
        (1.125, lambda: seen.append(published(tmp_path))),
        (1.25, b'update"}\n'),
        (1.75, lambda: seen.append(published(tmp_path))),
        (1.875, {"ended": True, "error": None}),
        (2.0, None),
    ]

    problem, when = watch(events)

    usual = {"machine": "here", "pid": PID, "step": 19, "stopped": False}
    assert [usual.items() <= state.items() for state in seen] == [True, True]
    assert [state["doing"] for state in seen] == ["the start", "the update"]
    assert [state["beat"] - START for state in seen] == [1.0, 1.5]
    assert seen[0]["host"]
    assert (problem, when) == (None, 2.0)
    last = published(tmp_path)
    assert (last["ended"], last["error"], last["dead"]) == (True, None, False)
    assert last["exited"] == [START + 2, 1000 * START + 2]
    assert len(list(tmp_path.iterdir())) == 1


def test_the_process_of_a_rank_is_published_before_its_first_report(watch, tmp_path):
    """Another rank on this machine looks whether it is alive, and a busy rank may be slow to report."""
    seen = []

    watch([(0.25, lambda: seen.append(published(tmp_path)["pid"])), (0.5, {"ended": True, "error": None}), (0.5, None)])

    assert seen == [PID]


def test_a_rank_that_exits_without_a_word_was_killed(watch, tmp_path):
    problem, when = watch([(0.25, {"step": 18, "doing": "the update"}), (0.375, None)])

    assert problem == (
        f"(process {PID}) was killed, often because memory ran out, or crashed; its last step was 18, doing the update"
    )
    assert when == pytest.approx(0.375 + 3 * module.INTERVAL_S)  # it waits for what the others publish
    assert published(tmp_path)["dead"] is True


@pytest.mark.parametrize("ended", [{}, {"ended": True, "error": "RuntimeError: connection lost"}])
def test_a_rank_that_fails_because_another_died_first_names_that_one(watch, other, ended):
    def die(rank, seconds):
        return lambda: other(rank, machine="here", dead=True, exited=[START + seconds, 0.0])

    before = [
        (0.125, ended),
        (0.25, die(1, 5.0)),
        (0.375, die(2, 0.25)),
        (0.375, die(3, 0.125)),
        (0.5, None),
    ]
    assert (
        watch(before, ranks=4)[0] == "rank 2 on elsewhere (process 7) is dead; its last step was 17, doing upper_step"
    )


@pytest.mark.parametrize(
    ("where", "exited", "is_blamed"),
    [
        ("there", [START + 9, 1000 * START + 0.375], True),
        ("there", [START, 1000 * START + 0.5], False),
        ("here", [START + 0.375, 1000 * START + 9], True),
        ("here", [START + 0.5, 1000 * START], False),
    ],
)
def test_only_a_rank_that_exited_before_is_blamed(watch, other, where, exited, is_blamed):
    """On the same machine the monotonic clock decides, elsewhere the wall clock."""
    error = {"ended": True, "error": "RuntimeError: connection lost"}

    def die():
        other(machine=where, dead=True, exited=exited)

    problem, _ = watch([(0.125, error), (0.25, die), (0.5, None)])

    assert (problem is not None) == is_blamed


def test_the_error_of_a_rank_is_its_own_if_no_other_has_a_problem(watch, other, tmp_path):
    other()
    assert watch([(0.125, {"ended": True, "error": "DataError: no shards"}), (0.25, None)])[0] is None
    assert published(tmp_path)["error"] == "DataError: no shards"


def test_a_rank_that_has_ended_looks_for_no_problem(watch, other):
    """It may take long to exit, and others may fail meanwhile."""
    events = [(0.125, {"ended": True, "error": None}), (1.0, lambda: other(dead=True)), (50.0, None)]
    assert watch(events, timeout=2.0) == (None, 50.0)


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"dead": True}, "rank 1 on elsewhere (process 7) is dead; its last step was 17, doing upper_step"),
        (
            {"ended": True, "error": "DataError: gone"},
            "rank 1 on elsewhere failed: DataError: gone (its last step was 17, doing upper_step)",
        ),
        ({"machine": "here"}, "rank 1 on elsewhere (process 7) is dead; its last step was 17, doing upper_step"),
        ({"machine": "here", "pid": PID}, None),
        ({"ended": True, "error": None, "machine": "here"}, None),
        ({"ended": True, "error": "ended, because rank 2 failed: DataError: gone"}, None),
        ({"dead": False, "stopped": True}, None),
        ({}, None),
    ],
)
def test_a_problem_of_another_rank_ends_this_one(watch, other, tmp_path, state, problem):
    events = [
        (0.625, lambda: other(**state)),
        (3.25, {"ended": True, "error": None}),
        (3.25, None),
    ]

    found, when = watch(events)

    assert (found, when) == (problem, 1.0 if problem else 3.25)
    last = published(tmp_path)
    assert last["ended"]
    assert last["error"] == (f"ended, because {problem}" if problem else None)


def test_the_lowest_rank_with_a_problem_is_named(watch, other):
    for rank in (1, 2, 3):
        other(rank, dead=rank > 1)
    assert watch([], ranks=4)[0].startswith("rank 2 on elsewhere")


@pytest.mark.parametrize("content", [b"", b'{"host', b"\xff"])
def test_a_file_that_cannot_be_read_is_no_problem(watch, tmp_path, content):
    (tmp_path / "rank_1.json").write_bytes(content)
    events = [(3.0, {"ended": True, "error": None}), (3.0, None)]
    assert watch(events) == (None, 3.0)


def test_machines_that_do_not_know_their_name_do_not_look_at_processes(watch, other, monkeypatch):
    monkeypatch.setattr(module, "machine", lambda: "")
    other(machine="")
    assert watch([(3.0, {"ended": True, "error": None}), (3.0, None)]) == (None, 3.0)


def test_a_rank_that_falls_silent_is_lost(watch, other):
    """It is looked at every half second; its last sign of life is seen at 1.5 s."""
    other()

    problem, when = watch([(1.125, lambda: other(beat=2.0))], silent=2.0)

    assert problem == ("rank 1 on elsewhere has not been heard from for 2 s; its last step was 17, doing upper_step")
    assert when == 4.0


def test_an_activity_may_take_as_long_as_the_timeout(watch):
    """Every report begins a new one."""
    problem, when = watch([(1.25, {"step": 18}), (1.5, {"doing": "the update"})], timeout=2.0)

    assert problem.startswith(
        "the update in step 18 takes longer than 2 s (parallelism.timeout): a rank is missing, or"
    )
    assert when == 4.0


def test_a_timeout_names_the_ranks_that_are_stopped(watch, other):
    for rank in (1, 2, 3):
        other(rank, pid=rank, stopped=rank != 2)

    problem, _ = watch([], ranks=4, timeout=2.0)

    assert problem == (
        "the start in step 0 takes longer than 2 s (parallelism.timeout): rank 1 on elsewhere (process 1) is stopped "
        "(SIGSTOP); kill -CONT continues it, rank 3 on elsewhere (process 3) is stopped (SIGSTOP); kill -CONT "
        "continues it"
    )


STOPPED = "rank 1 on elsewhere (process 7) is stopped (SIGSTOP); kill -CONT continues it"


def test_a_rank_that_fails_while_another_is_stopped_names_that_one(watch, other):
    """MindSpore gives up on a stopped rank after a while, and the collectives of the others fail."""
    other(1, stopped=True)
    failed = {"ended": True, "error": "RuntimeError: The state of the cluster is error"}

    problem, _ = watch([(1.0, failed), (1.125, None)])

    assert problem == STOPPED


def test_a_rank_that_is_stopped_is_named_before_one_that_fails_because_of_it(watch, other):
    other(1, stopped=True)
    other(2, error="RuntimeError: The state of the cluster is error", ended=True)

    problem, _ = watch([], ranks=3)

    assert problem.startswith(f"{STOPPED}; rank 2 on elsewhere failed: RuntimeError: The state of the cluster is error")


def test_a_rank_that_is_stopped_itself_is_named_before_one_that_fails_because_of_it(watch, other, monkeypatch):
    monkeypatch.setattr(module, "_state_of", lambda pid: "T")
    other(1, error="RuntimeError: The state of the cluster is error", ended=True)

    problem, _ = watch([])

    assert "is stopped (SIGSTOP); kill -CONT continues it; rank 1 on elsewhere failed: RuntimeError" in problem


def test_the_time_for_which_a_rank_is_stopped_does_not_count(watch, tmp_path, monkeypatch):
    """It is continued after 10 s, and then has another 2 s."""
    states = {PID: "T"}
    monkeypatch.setattr(module, "_state_of", states.get)
    stopped = []
    events = [
        (9.875, lambda: (stopped.append(published(tmp_path)["stopped"]), states.update({PID: "S"}))),
        (10.75, lambda: stopped.append(published(tmp_path)["stopped"])),
    ]

    problem, when = watch(events, timeout=2.0)

    assert problem.startswith("the start in step 0 takes longer than 2 s")
    assert when == 12.0
    assert stopped == [True, False]


def test_a_folder_that_cannot_be_written_does_not_end_a_rank(watch, tmp_path):
    tmp_path.rmdir()
    assert watch([(3.0, {"ended": True, "error": None}), (3.0, None)]) == (None, 3.0)


def test_what_an_earlier_process_left_is_no_obstacle(watch, tmp_path):
    (tmp_path / f"rank_0.{os.getpid()}.part").write_text("of a process with the same id")

    watch([(0.0, {"ended": True, "error": None}), (0.0, None)])

    assert [path.name for path in tmp_path.iterdir()] == ["rank_0.json"]


def test_a_machine_is_its_boot_and_its_namespace_of_processes(monkeypatch):
    assert module.machine() == module.machine()
    assert module.machine().endswith(os.readlink("/proc/self/ns/pid"))

    def hidden(path):
        raise PermissionError

    monkeypatch.setattr(os, "readlink", hidden)
    assert module.machine() == ""


def test_the_states_of_processes_are_known(tmp_path):
    """The name of a program may look like the rest of the line."""
    odd = tmp_path / "a) T (b"
    shutil.copy(shutil.which("sleep"), odd)
    sleeping = subprocess.Popen([odd, "30"])
    ended = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    ended.stdout.read()
    try:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert module._state_of(sleeping.pid) in ("S", "D", "R")
        assert module._is_alive(sleeping.pid)
        assert module._state_of(ended.pid) == "Z"
        assert not module._is_alive(ended.pid)
        sleeping.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, sleeping.pid, os.WSTOPPED)
        assert module._state_of(sleeping.pid) == "T"
        assert module._is_alive(sleeping.pid)
    finally:
        sleeping.kill()
        sleeping.wait()
        ended.wait()
    assert module._state_of(ended.pid) == ""
    assert not module._is_alive(ended.pid)


@pytest.mark.parametrize(
    ("problem", "parent", "has_ended", "killed"),
    [
        ("rank 1 is dead", PID, False, [(PID, signal.SIGKILL)]),
        ("rank 1 is dead", PID, True, []),
        ("rank 1 is dead", 1, False, []),  # the rank has exited
        (None, PID, False, []),
    ],
)
def test_a_problem_is_printed_and_ends_the_rank_that_still_runs(
    tmp_path, monkeypatch, capsys, problem, parent, has_ended, killed
):
    made = []

    def make(*arguments):
        made.append(arguments)
        return SimpleNamespace(watch=lambda news: problem, rank_has_ended=has_ended)

    kills = []
    monkeypatch.setattr(module, "Watcher", make)
    monkeypatch.setattr(sys, "argv", ["watcher.py", str(tmp_path), "3", "8", "1800.0", "60.0", str(PID)])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(fileno=lambda: 0))
    monkeypatch.setattr(os, "getppid", lambda: parent)
    monkeypatch.setattr(os, "kill", lambda pid, signum: kills.append((pid, signum)))

    module.main()

    assert made == [(tmp_path, 3, 8, 1800.0, 60.0, PID)]
    assert kills == killed
    assert capsys.readouterr().err == ("mindpangu: error: rank 3: rank 1 is dead\n" if problem else "")
