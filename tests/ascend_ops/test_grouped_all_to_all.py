"""grouped_all_to_all between real processes (exchange_worker.py), and in a group of one; both backends."""

import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor

from ascend_ops import native
from ascend_ops.grouped_all_to_all import dispatch_all_to_all, first_order, grouped_all_to_all, join, reference
from ascend_ops.grouped_all_to_all.composed import Exchange
from ascend_ops.grouped_all_to_all.group import Group

WORKER = Path(__file__).with_name("exchange_worker.py")
SECONDS = 60  # time limit of a scenario; each takes less than half of it


def needs_compiler():
    try:
        native.library("grouped_all_to_all")
    except native.CompileError as error:
        pytest.skip(str(error))


@contextlib.contextmanager
def ranks(scenario, size, folder):
    """Starts the processes of a scenario, yields them and their job's id, and kills them at the end."""
    needs_compiler()
    job = uuid.uuid4().hex
    environment = os.environ | {"MINDPANGU_JOB_ID": job, "MINDPANGU_OPS": "cpu", "GLOG_v": "3"}
    environment["PYTHONPATH"] = str(WORKER.parents[2])
    processes = []
    try:
        for rank in range(size):
            with (folder / f"{rank}.log").open("w") as log:
                command = [sys.executable, str(WORKER), scenario, str(rank), str(folder)]
                processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder))
        yield processes, job
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_for_results(folder, processes, until="finished"):
    """Waits until all processes have recorded `until`, and returns the results of each rank."""
    deadline = time.monotonic() + SECONDS
    ranks = range(len(processes))
    results = {}
    while len(results) < len(ranks):
        ended = any(processes[rank].poll() is not None for rank in set(ranks) - set(results))
        for rank in set(ranks) - set(results):
            with contextlib.suppress(FileNotFoundError):
                content = json.loads((folder / f"{rank}.json").read_text())
                if until in content:
                    results[rank] = content
        missing = set(ranks) - set(results)
        if missing and (ended or time.monotonic() > deadline):
            logs = [f"rank {rank}: {(folder / f'{rank}.log').read_text()[-1000:]}" for rank in ranks]
            pytest.fail(f"only ranks {sorted(results)} reached {until}\n" + "\n".join(logs))
        time.sleep(0.05)
    return results


def abstract_sockets(job):
    return [line for line in Path("/proc/net/unix").read_text(encoding="utf-8").splitlines() if job in line]


def shared_memory():
    """Returns the bytes of shared memory in use on this machine."""
    (kilobytes,) = re.findall(r"^Shmem: *(\d+)", Path("/proc/meminfo").read_text(encoding="utf-8"), re.MULTILINE)
    return int(kilobytes) << 10


def all_ok(results):
    problems = [
        f"rank {rank}, {name}: {result}"
        for rank, content in results.items()
        for name, result in content.items()
        if isinstance(result, str) and result != "ok"
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.slow
def test_four_processes_equal_the_reference_in_groups_of_two_and_four(tmp_path):
    """Forward and gradient, equal to the reference bit by bit: see `all_checks` in the worker."""
    before = set(os.listdir("/dev/shm"))

    with ranks("checks", 4, tmp_path) as (processes, job):
        results = wait_for_results(tmp_path, processes)
        for process in processes:
            process.wait(20)

    all_ok(results)
    assert all(len(content) == len(results[0]) > 10 for content in results.values())
    for content in results.values():
        # to other ranks: dispatch and return, forward and backward
        assert content["graph dispatch"] == content["pynative dispatch"]
        assert content["graph dispatch"]["exchanges"] == 4
    assert not abstract_sockets(job)
    assert not [name for name in set(os.listdir("/dev/shm")) - before if job in name or "mindpangu" in name]


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refusals")
    with ranks("refusals", 4, folder) as (processes, _):
        return wait_for_results(folder, processes)


@pytest.mark.parametrize(
    ("case", "rank", "message"),
    [
        ("plans differ", 0, r"plans of the ranks differ: rank 1 .* sends 2 rows to rank 0, which expects 3"),
        ("negative", 0, r"rank 0 .* sends -2 rows to rank 1"),
        ("sends too much", 0, r"rank 0 .* sends 13 rows, but its buffer has 12"),
        ("receives too much", 0, r"rank 0 .* receives 51 rows, but its buffer has 50"),
        ("oversize", 0, r"sends 8800 bytes, but an outbox holds 4096: join the group with a larger capacity_bytes"),
        ("bad id", 1, r"token id 99 of row 3 is outside the table of 17 tokens"),
    ],
)
def test_a_call_that_one_rank_refuses_fails_on_both(refused, case, rank, message):
    for pair in (0, 2):
        assert re.search(message, refused[pair + rank][case][0])
        # a rank whose own rows were valid gets the error with its next exchange
        others, seconds = refused[pair + 1 - rank][f"{case}, again" if case == "plans differ" else case]
        assert re.search(f"has failed at rank {rank}: .*{message}", others)
        assert seconds < 15


def test_ranks_whose_rows_differ_in_width_fail_both(refused):
    for rank, content in refused.items():
        assert re.search("rows of (20|24) bytes", content["widths differ"][0]), rank


def test_an_exchange_with_a_rank_that_left_or_in_a_closed_group_is_refused(refused):
    assert re.search(r"rank 1 of group left0 \(pid \d+\) has died or left \(exchange 1\)", refused[0]["left"][0])
    for content in refused.values():
        assert "the group is closed" in content["closed"][0]


def test_groups_that_cannot_be_joined_are_named(tmp_path):
    with ranks("joins", 4, tmp_path) as (processes, _):
        results = wait_for_results(tmp_path, processes)

    for rank in (0, 1, 2):
        message, seconds = results[rank]["absent"]
        assert message == "rank 3 of group absent did not join within 2 s"
        assert seconds < 4
        assert "two processes claim rank 1" in results[rank]["same rank"][0]
    for rank in (0, 2):
        assert re.search("rank 2 joins 4 ranks .* rank 0 3", results[rank]["other size"][0])
    for rank in (1, 2, 3):
        assert "rank 0 of group absent host" in results[rank]["absent host"][0]
    assert "another rank 0 of the same job has this group open" in results[0]["open already"][0]
    assert "MINDPANGU_JOB_ID" in results[0]["no job"][0]


def test_a_killed_or_stopped_rank_is_named(tmp_path):
    with ranks("fates", 4, tmp_path) as (processes, _):
        results = wait_for_results(tmp_path, processes[:2])
        assert processes[3].wait(5) == -signal.SIGKILL
        pids = [process.pid for process in processes]

    for content in results.values():
        killed, seconds = content["killed"]
        assert f"rank 2 of group killed (pid {pids[3]}) has died" in killed
        assert seconds < 5  # much less than the time-out
        stopped, seconds = content["stopped"]
        assert f"rank 2 of group stopped (pid {pids[2]}) did not arrive within 2 s" in stopped
        assert 2 < seconds < 10


def test_a_killed_job_leaves_nothing(tmp_path):
    before = shared_memory()
    files = set(os.listdir("/dev/shm"))

    with ranks("hold", 2, tmp_path) as (processes, job):
        results = wait_for_results(tmp_path, processes, until="held")
        held = sum(content["held"]["bytes_sent"] for content in results.values())
        assert shared_memory() - before > held / 2
        assert abstract_sockets(job)
        for process in processes:
            process.kill()
            process.wait()

    assert not abstract_sockets(job)
    assert not [name for name in set(os.listdir("/dev/shm")) - files if job in name or "mindpangu" in name]
    deadline = time.monotonic() + 5
    while shared_memory() - before > held / 2:
        assert time.monotonic() < deadline, "the memory is still there"
        time.sleep(0.05)


@pytest.mark.slow  # four processes that compile for long, on two cores
def test_the_composed_form_equals_the_reference_in_four_processes(tmp_path):
    tools = Path(sys.executable).parent
    msrun = shutil.which("msrun", path=f"{tools}{os.pathsep}{os.environ['PATH']}")
    if msrun is None:
        pytest.skip("msrun is not there")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"MINDPANGU_OPS": "composed", "GLOG_v": "3", "PYTHONPATH": str(WORKER.parents[2])}
    environment["PATH"] = f"{tools}{os.pathsep}{environment['PATH']}"  # msrun starts "python"
    command = [msrun, "--worker_num=4", "--local_worker_num=4", f"--master_port={port}", "--join=True"]
    command += [f"--log_dir={tmp_path / 'log'}", str(WORKER), "composed", "msrun", str(tmp_path)]
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, cwd=tmp_path, start_new_session=True
        )
        try:
            process.wait(4 * SECONDS)
        except subprocess.TimeoutExpired:
            pytest.fail((tmp_path / "log.txt").read_text()[-2000:])
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and its children: it leads a session
            process.wait()

    results = {rank: json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(4)}

    all_ok(results)
    assert all("finished" in content for content in results.values())


def alone(backend):
    """Returns a group of one rank for this backend."""
    if backend.name == "composed":
        return Group("solo", 0, 1, -1, Exchange("solo", 0, 1))
    return join("solo", 0, 1)


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 9), spare=st.integers(0, 5), sent=st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_a_group_of_one_matches_the_reference(backend, group_of_one, seed, rows, spare, sent):
    group = group_of_one(backend)
    sent = min(sent, rows)
    capacity = sent + spare or 1
    rng = np.random.default_rng(seed)
    rows_QH = rng.standard_normal((rows, 3))
    dout_CH = rng.standard_normal((capacity, 3))
    counts_R = Tensor(np.array([sent], np.int32))

    def weighted(rows_QH, dout_CH):
        out_CH, order = grouped_all_to_all(rows_QH, counts_R, counts_R, capacity, group, first_order())
        return (out_CH * dout_CH).sum(), out_CH, order

    (_, out_CH, order), drows_QH = ms.value_and_grad(weighted, 0, has_aux=True)(Tensor(rows_QH), Tensor(dout_CH))

    np.testing.assert_array_equal(out_CH.asnumpy(), reference.grouped_all_to_all([rows_QH], [[sent]], capacity)[0])
    expected = reference.grouped_all_to_all_backward([dout_CH], [[sent]], [rows])[0]
    np.testing.assert_array_equal(drows_QH.asnumpy(), expected)
    assert order.asnumpy() == [0]


@given(
    seed=st.integers(0, 2**32 - 1),
    tokens=st.integers(1, 12),
    slots=st.integers(1, 3),
    experts=st.integers(1, 4),
    spare=st.integers(0, 3),
)
@settings(max_examples=15, deadline=None)
def test_dispatch_alone_matches_reference(backend, group_of_one, seed, tokens, slots, experts, spare):
    group = group_of_one(backend)
    rng = np.random.default_rng(seed)
    capacity = tokens + spare
    x_TH = rng.standard_normal((tokens, 3))
    dout_CH = rng.standard_normal((capacity, 3))
    ids_T = rng.integers(0, 7, tokens).astype(np.int32)
    slots_T = rng.integers(0, slots, tokens).astype(np.int32)
    table_DV = rng.integers(0, experts, (slots, 7)).astype(np.int32)
    counts_R = Tensor(np.array([tokens], np.int32))
    ids = [Tensor(array) for array in (ids_T, slots_T, table_DV)]

    def weighted(x_TH, dout_CH):
        rows_CH, counts_RG, positions_T, invalid, _ = dispatch_all_to_all(
            x_TH, *ids, experts, counts_R, counts_R, capacity, group, first_order()
        )
        return (rows_CH * dout_CH).sum(), rows_CH, counts_RG, positions_T, invalid

    (_, *results, invalid), dx_TH = ms.value_and_grad(weighted, 0, has_aux=True)(Tensor(x_TH), Tensor(dout_CH))

    expected = reference.dispatch_all_to_all([x_TH], [ids_T], [slots_T], table_DV, experts, capacity)
    for each, (wanted,) in zip(results, expected, strict=True):
        np.testing.assert_array_equal(each.asnumpy(), wanted)
    assert invalid.asnumpy() == [0]
    (expected,) = reference.dispatch_all_to_all_backward([dout_CH], *expected[1:])
    np.testing.assert_array_equal(dx_TH.asnumpy(), expected)


@pytest.fixture(scope="module")
def group_of_one():
    """Switches the operator to a backend until the end of this module, and returns a group of one rank."""
    import ascend_ops.grouped_all_to_all as operator

    kept = operator.implementation
    groups = {}

    def switch(backend):
        operator.implementation = backend("grouped_all_to_all")
        return groups.setdefault(backend.name, groups.get(backend.name) or alone(backend))

    yield switch
    operator.implementation = kept


def test_eager_ids_are_checked():
    group = join("solo", 0, 1)
    ids = np.array([0, 7], np.int32)
    arrays = (np.zeros((2, 3), np.float32), ids, np.zeros(2, np.int32), np.zeros((1, 7), np.int32))
    counts_R = Tensor(np.array([2], np.int32))

    with pytest.raises(ValueError, match="token id 7 is outside the table of 7"):
        dispatch_all_to_all(*map(Tensor, arrays), 1, counts_R, counts_R, 2, group, first_order())
    group.close()


def test_wrong_arguments_are_refused():
    group = join("solo", 0, 1)
    rows = Tensor(np.zeros((2, 3), np.float32))
    one = Tensor(np.ones(1, np.int32))
    two = Tensor(np.ones(2, np.int32))

    with pytest.raises(TypeError, match="int32 send_counts_R"):
        grouped_all_to_all(rows, rows, one, 4, group, first_order())
    with pytest.raises(ValueError, match=r"receive_counts_R \[1\] for this group"):
        grouped_all_to_all(rows, two, two, 4, group, first_order())
    with pytest.raises(ValueError, match="capacity is 0"):
        grouped_all_to_all(rows, one, one, 0, group, first_order())
    table = Tensor(np.zeros((1, 7), np.int32))
    with pytest.raises(ValueError, match="3 chunks do not divide 2 tokens"):
        dispatch_all_to_all(rows, two, two, table, 1, one, one, 4, group, first_order(), chunks=3)
    with pytest.raises(ValueError, match="outside its 2 ranks"):
        join("pair", 2, 2)
    group.close()
    module = importlib.import_module("ascend_ops.grouped_all_to_all")
    if module.implementation.__name__.endswith("cpu"):
        with pytest.raises(RuntimeError, match="closed"):
            group.statistics()
