"""The ranks of a run: how many must be started, their groups and self-tests, and what they tell each other."""

import logging
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import communication

from ascend_ops.native import OperatorError
from mindpangu.config import load_config
from mindpangu.errors import ConfigError, ParallelError
from mindpangu.parallel import processes as module
from mindpangu.parallel.mesh import Mesh
from mindpangu.parallel.processes import Processes, start_processes
from tests.parallel.simulation import SimulatedRanks

MESH = Mesh(data=4, tensor=2, expert=2)
WORLD = tuple(range(MESH.size))
GROUPS = {
    f"{kind}_{members[0]}": members
    for kind, method in {"tensor": "tensor_group", "data": "data_group", "replicas": "expert_replicas"}.items()
    for members in MESH.groups(method)
} | {"world": WORLD}


@pytest.fixture
def ranks(monkeypatch):
    return SimulatedRanks(GROUPS).install(monkeypatch)


def name_of(kind, members):
    """The name of a group in `GROUPS`."""
    return "world" if kind == "world" else f"{kind}_{members[0]}"


def processes_of(rank, name_of=name_of):
    return Processes(MESH, rank, name_of)


def first_of_two(rank=0, **replaced):
    """A rank of two that have no groups, and of which the other contributes nothing to any sum."""
    processes = Processes(Mesh(), 0, lambda kind, members: "")
    processes.mesh = Mesh(data=2)
    processes.rank = rank
    processes.all_reduce_sum = lambda values: values
    vars(processes).update(replaced)
    return processes


def test_a_single_process_has_nothing_to_exchange(monkeypatch):
    monkeypatch.delenv("RANK_SIZE", raising=False)

    processes = start_processes(load_config(None))

    assert processes.mesh.size == 1
    assert processes.is_first
    assert processes.exchange is None


def test_a_number_of_processes_that_differs_from_the_mesh_is_refused(monkeypatch):
    monkeypatch.setenv("RANK_SIZE", "4")
    config = load_config(None, {"parallelism.data_parallel": "2", "parallelism.tensor_parallel": "4"})

    with pytest.raises(ParallelError, match=r"asks for 8 processes .*, but 4 were started; bash .*cluster.sh 8"):
        start_processes(config)


@pytest.mark.parametrize("text", ["", "two", "-1", "1.0"])
def test_a_number_of_processes_that_msrun_did_not_set_is_named(monkeypatch, text):
    monkeypatch.setenv("RANK_SIZE", text)

    with pytest.raises(ParallelError, match=f"RANK_SIZE is '{text}'"):
        start_processes(load_config(None))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_parallel": "4", "expert_parallel": "3"}, "expert_parallel is 3, which does not divide"),
        ({"tensor_parallel": "3"}, "tensor_parallel is 3; it must divide model.num_heads 4"),
    ],
)
def test_axes_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        load_config(None, {f"parallelism.{key}": value for key, value in changes.items()})


def test_every_call_draws_a_new_name():
    names = {Processes.alone().draw_shared_name() for _ in range(100)}

    assert len(names) == 100
    assert all(re.fullmatch("job-[0-9a-f]{16}", name) for name in names)


def test_a_flag_of_one_rank_reaches_all(ranks):
    flags = {3: [False, True, False], 6: [False, True, True]}

    def run(rank):
        processes = processes_of(rank)
        mine = flags.get(rank, [False] * 3)
        return processes.any_ranks(mine), processes.any_rank(rank == 5), processes.any_rank(False)

    for result in ranks.run(run):
        assert result == ([False, True, True], True, False)


def test_a_barrier_waits_for_every_rank(ranks):
    ranks.run(lambda rank: processes_of(rank).barrier())

    with pytest.raises(AssertionError, match="the ranks wait for each other for ever"):
        ranks.run(lambda rank: rank == 3 or (processes_of(rank).barrier(), processes_of(rank).barrier()))


@pytest.mark.parametrize("number", [0, 1, (1 << 24) - 1, 1 << 24, (1 << 24) + 5, 123_456_789_012_345, (1 << 48) - 1])
def test_every_rank_gets_the_first_ranks_number(ranks, number):
    results = ranks.run(lambda rank: processes_of(rank).broadcast(number + rank))
    assert results == [number] * MESH.size


def test_the_number_of_another_rank_does_not_matter():
    assert first_of_two(rank=1).broadcast(5) == 0  # what the first rank contributes is missing here
    assert first_of_two(rank=0).broadcast(5) == 5


def test_a_single_process_keeps_its_own_number_flags_and_values():
    alone = Processes.alone()
    values = np.array([1.0, 2.0])

    assert alone.broadcast(1 << 60) == 1 << 60
    assert alone.any_ranks([True, False]) == [True, False]
    assert alone.all_reduce_sum(values) is values
    alone.report_status(3, "nothing that anyone watches")


def test_all_ranks_draw_the_same_name(ranks, monkeypatch):
    monkeypatch.setattr(os, "urandom", lambda count: bytes([0xFF, 0xFF, 0, 0, 0x34, 0x12, 1, ranks.rank])[:count])

    names = ranks.run(lambda rank: processes_of(rank).draw_shared_name())

    assert names == ["job-ffff000012340001"] * MESH.size


def test_values_are_summed_in_float32(ranks):
    results = ranks.run(lambda rank: processes_of(rank).all_reduce_sum(np.array([rank, 0.1 * rank])))

    for result in results:
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, [28, 2.8], rtol=1e-6)


def test_a_rank_knows_its_place_in_the_mesh_and_in_every_group(ranks):
    for rank in WORLD:
        processes = processes_of(rank)
        assert processes.coordinates == MESH.coordinates(rank)
        assert processes.data == MESH.data_index(processes.coordinates)
        assert processes.is_first == (rank == 0)
        for group, members in (
            (processes.tensor, MESH.tensor_group(rank)),
            (processes.dense, MESH.data_group(rank)),
            (processes.replicas, MESH.expert_replicas(rank)),
        ):
            assert (group.size, members[group.rank]) == (len(members), rank)


def test_groups_that_add_up_pass_their_self_test(ranks, monkeypatch):
    monkeypatch.setattr(module, "_exchange_group", lambda config, processes: f"exchange of {processes.rank}")
    reports = {}

    def run(rank):
        processes = processes_of(rank)
        reports[rank] = []
        processes._watch = SimpleNamespace(report_status=lambda step, doing: reports[rank].append(doing))
        processes.join_groups(None)
        return processes.exchange

    assert ranks.run(run) == [f"exchange of {rank}" for rank in WORLD]
    assert reports[5] == [
        "the self-test of the group of the same matrices, [4, 5]",
        "the self-test of the group of the same dense parameters, [1, 3, 5, 7]",
        "the self-test of the group of the same experts, [1, 5]",
        "the self-test of the group of all ranks, [0, 1, 2, 3, 4, 5, 6, 7]",
        "joining the ranks that exchange tokens, [5, 7]",
    ]


@pytest.mark.parametrize(
    ("wrong", "instead", "words"),
    [
        (
            "tensor",
            "data",
            r"the group of the same matrices, ranks \[0, 1\], computes a wrong sum: got \[1.0, 0.0, 3.0, ",
        ),
        ("data", "replicas", r"of the same dense parameters, ranks \[0, 2, 4, 6\], .* expected \[1.0, 0.0, 3.0, 0.0, "),
        ("replicas", "tensor", r"of the same experts, ranks \[0, 4\], .* got \[1.0, 2.0, 0.0, .* see docs/cluster.md"),
        ("world", "data", r"of all ranks, ranks \[0, 1, 2, 3, 4, 5, 6, 7\], computes a wrong sum"),
    ],
)
def test_a_group_of_the_wrong_ranks_is_named(ranks, wrong, instead, words):
    method = {"data": MESH.data_group, "replicas": MESH.expert_replicas, "tensor": MESH.tensor_group}[instead]

    def run(rank):
        def wrong_name_of(kind, members):
            return name_of(instead, method(rank)) if kind == wrong else name_of(kind, members)

        with pytest.raises(ParallelError) as raised:
            processes_of(rank, wrong_name_of).join_groups(None)
        return str(raised.value)

    assert re.search(words, ranks.run(run)[0])


def test_ranks_of_groups_of_one_have_nothing_to_test(monkeypatch):
    monkeypatch.setattr(module, "_exchange_group", lambda config, processes: None)
    processes = Processes.alone()
    reports = []
    processes._watch = SimpleNamespace(report_status=lambda step, doing: reports.append(doing))

    processes.join_groups(load_config())

    assert processes.exchange is None
    assert not [doing for doing in reports if "self-test" in doing]


def test_a_rank_among_several_on_the_cpu_lowers_its_priority_once(monkeypatch):
    priorities = []
    monkeypatch.setattr(os, "getpriority", lambda which, who: {(os.PRIO_PROCESS, 0): 3}[which, who])
    monkeypatch.setattr(os, "setpriority", lambda which, who, priority: priorities.append((which, who, priority)))
    processes = first_of_two()

    for _ in range(3):
        processes.lower_priority()
    Processes.alone().lower_priority()
    first_of_two(_may_lower_priority=False).lower_priority()

    assert priorities == [(os.PRIO_PROCESS, 0, 13)]


class FakeWatch:
    """Records what it is told."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.reports = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.reports.append("end")

    def report_status(self, step, doing):
        self.reports.append((step, doing))


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_watch_each_other_in_a_folder_of_their_job(tmp_path, monkeypatch, rank):
    made = []
    monkeypatch.setattr(module, "Watch", lambda *arguments: made.append(FakeWatch(arguments)) or made[-1])
    earlier = tmp_path / f"job-{'0' * 16}"
    earlier.mkdir()
    barriers = []
    processes = first_of_two(
        rank, draw_shared_name=lambda: "job-1234", barrier=lambda: barriers.append(earlier.exists())
    )
    processes.report_status(1, "before anyone watches")

    with processes.watched(tmp_path, 7.5):
        processes.report_status(2, "watched")
        if rank == 0:
            (lock,) = tmp_path.glob(".job-1234*")
            assert lock.read_bytes()

    (watch,) = made
    assert watch.arguments == (tmp_path / "job-1234", rank, 2, 7.5)
    assert watch.reports == [(2, "watched"), "end"]
    assert barriers == [rank != 0]  # only the first rank has removed what is left of earlier jobs, before all go on
    assert not list(tmp_path.glob(".job-1234*"))


def test_a_single_process_watches_nobody(tmp_path):
    with Processes.alone().watched(tmp_path / "watch", 7.5):
        pass
    assert not (tmp_path / "watch").exists()


def config_of(mesh, **overrides):
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    axes = {"data": mesh.data, "tensor": mesh.tensor, "expert": mesh.expert}
    return load_config(None, overrides | {f"parallelism.{name}_parallel": str(size) for name, size in axes.items()})


@pytest.fixture
def engine(monkeypatch):
    """MindSpore's engine as rank 5 of 8 sees it; the result lists the groups that are created."""
    created = []
    monkeypatch.setenv("RANK_SIZE", "8")
    monkeypatch.setattr(communication, "init", lambda: None)
    monkeypatch.setattr(communication, "get_rank", lambda: 5)
    monkeypatch.setattr(communication, "create_group", lambda name, members: created.append((name, members)))
    SimulatedRanks({}).install(monkeypatch)
    return created


def test_every_group_of_some_of_the_ranks_is_created(engine, caplog):
    processes = start_processes(config_of(MESH))

    assert processes.rank == 5
    assert processes.mesh == MESH
    assert engine == [("tensor_4", [4, 5]), ("data_1", [1, 3, 5, 7]), ("replicas_1", [1, 5])]
    assert processes.tensor.name == "tensor_4"
    assert not caplog.messages  # the rule of 910A is one of Ascend


def test_neither_a_group_of_one_nor_that_of_all_ranks_is_created(engine):
    processes = start_processes(config_of(MESH), Mesh(data=8, expert=8))

    assert engine == []
    assert (processes.tensor.size, processes.dense.size, processes.replicas.size) == (1, 8, 1)


def test_groups_that_a_910a_does_not_allow_are_named(engine, caplog):
    start_processes(config_of(MESH, context__device_target="Ascend"))

    assert [message.split(":")[0] for message in caplog.messages] == [
        "data group of ranks [1, 3, 5, 7]",
        "replicas group of ranks [1, 5]",
    ]
    assert "both clusters of a node, which HCCL does not allow on 910A" in caplog.messages[1]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


@pytest.mark.parametrize(
    ("printed", "reason"),
    [("-----\n- Topology\n-----\n  no scheduler  \n", "- Topology"), ("----\n\n", "no reason given"), ("lost", "lost")],
)
def test_an_engine_that_cannot_connect_is_reported_with_its_address(engine, monkeypatch, printed, reason):
    def fail():
        raise RuntimeError(printed)

    monkeypatch.setattr(communication, "init", fail)
    monkeypatch.setenv("MS_SCHED_HOST", "10.0.0.7")
    monkeypatch.setenv("MS_SCHED_PORT", "8118")

    with pytest.raises(ParallelError) as raised:
        start_processes(config_of(MESH))

    assert str(raised.value) == (
        f"MindSpore could not connect the 8 ranks through 10.0.0.7:8118, or lost one of them: {reason}"
    )


@pytest.fixture
def joined(monkeypatch):
    """Replaces the joining of an exchange group; the result has the arguments of each call."""
    calls = []
    monkeypatch.setenv("MINDPANGU_JOB_ID", "the job")
    monkeypatch.setattr(module, "join", lambda *arguments, **options: calls.append((arguments, options)) or "joined")
    return calls


def exchange_of(rank, mesh, **overrides):
    """Returns what a rank gets when it joins its exchange group."""
    processes = first_of_two(rank, mesh=mesh)
    return module._exchange_group(config_of(mesh, **overrides), processes)


def test_ranks_join_those_that_they_exchange_rows_with(joined):
    assert exchange_of(5, Mesh(data=8, expert=4)) == "joined"

    (((name, rank, size), options),) = joined
    assert (name, rank, size) == ("exchange_4", 1, 4)
    assert options.pop("agree")(True) is True
    assert options == {"job": "the job", "ranks": [4, 5, 6, 7], "nodes": None, "whole_nodes": False}


def test_with_tensor_groups_the_ranks_of_the_nodes_are_known(joined):
    exchange_of(5, MESH, parallelism__exchange="node")

    (((name, rank, size), options),) = joined
    assert (name, rank, size) == ("exchange_5", 0, 2)
    assert (options["ranks"], options["nodes"], options["whole_nodes"]) == ([5, 7], [4, 5, 6, 7], True)


def test_a_rank_that_holds_all_experts_joins_nobody(joined):
    assert exchange_of(1, Mesh(data=2)) is None
    assert not joined


def test_jobs_without_an_id_differ_by_their_scheduler(joined, monkeypatch):
    monkeypatch.delenv("MINDPANGU_JOB_ID")
    monkeypatch.setenv("MS_SCHED_HOST", "10.0.0.7")
    monkeypatch.setenv("MS_SCHED_PORT", "8118")

    exchange_of(0, Mesh(data=2, expert=2))

    assert joined[0][1]["job"] == "10.0.0.7-8118"


@pytest.mark.parametrize(
    ("device", "exchange", "warns"),
    [("Ascend", "group", True), ("Ascend", "node", False), ("CPU", "group", False)],
)
def test_an_exchange_group_that_a_910a_does_not_allow_is_named(joined, caplog, device, exchange, warns):
    exchange_of(5, Mesh(data=4, tensor=2, expert=4), context__device_target=device, parallelism__exchange=exchange)
    assert [message.split(":")[0] for message in caplog.messages] == ["exchange group of ranks [1, 3, 5, 7]"] * warns


@pytest.mark.parametrize("error", [RuntimeError("no memory"), TimeoutError("no memory")])
def test_ranks_that_cannot_join_are_named(monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(module, "join", fail)

    with pytest.raises(ParallelError, match=r"ranks that exchange tokens, \[5, 7\], cannot join: no memory"):
        exchange_of(5, MESH)


def test_an_operator_that_is_not_available_says_so_itself(monkeypatch):
    def fail(*arguments, **options):
        raise OperatorError("install a compiler")

    monkeypatch.setattr(module, "join", fail)

    with pytest.raises(OperatorError, match="install a compiler"):
        exchange_of(5, MESH)
