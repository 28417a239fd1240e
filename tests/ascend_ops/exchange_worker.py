"""One rank of the processes that test_grouped_all_to_all.py starts.

Usage: python exchange_worker.py SCENARIO RANK FOLDER. It writes its results to FOLDER/RANK.json,
check by check: "ok", figures, or the error.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import mindspore as ms
import numpy as np
from exchange_checks import (
    CAPACITY,
    HIDDEN,
    ROWS,
    counts_of_chunk,
    dispatch_case,
    dispatch_check,
    exchange_check,
    expert_parallel_check,
    many_rounds_check,
    two_exchanges_check,
)
from mindspore import Tensor

from ascend_ops.grouped_all_to_all import dispatch_all_to_all, first_order, grouped_all_to_all, join

SCENARIO = sys.argv[1]
FOLDER = Path(sys.argv[3])
RANK = int(sys.argv[2]) if SCENARIO != "composed" else int(os.environ["RANK_ID"])  # which msrun sets
results = {}


def check(function):
    """Runs a check and records its result, "ok" if it returns none."""
    try:
        results[function.__name__] = function() or "ok"
    except Exception:
        results[function.__name__] = traceback.format_exc()
    # renamed, so that readers see a complete file
    (FOLDER / f"{RANK}.part").write_text(json.dumps(results))
    (FOLDER / f"{RANK}.part").rename(FOLDER / f"{RANK}.json")


def refusal(function, *arguments, error=Exception):
    """Returns the message of the error that a call raises, and after how many seconds."""
    started = time.monotonic()
    try:
        function(*arguments)
    except error as problem:
        return [str(problem).split("\n")[0], time.monotonic() - started]
    return ["nothing was refused", 0.0]


def all_checks(pair, quad, rounds, repeats, chunkings=(2, 3)):
    """Runs the checks of all backends."""
    patterns = ("ragged", "nobody to 0", "all to the last")
    for graph in (True, False):
        mode = "graph" if graph else "pynative"
        for group in (pair, quad):
            named(f"{mode} exchange of {group.size}", exchange_check, group, graph, "float32", patterns)
        # the composed form uses AllReduce, which takes no float64
        for dtype in ("float16",) if SCENARIO == "composed" else ("float16", "float64"):
            named(f"{mode} {dtype}", exchange_check, pair, graph, dtype, patterns[:1])
        named(f"{mode} two exchanges", two_exchanges_check, pair, quad, graph, repeats)
        named(f"{mode} dispatch", dispatch_check, quad, graph, chunkings)
        for group in (pair, quad):
            named(f"{mode} expert parallel layer of {group.size}", expert_parallel_check, group, graph)
    named("many rounds", many_rounds_check, quad, rounds)


def fork_check(group):
    """A child that closes its inherited descriptors must not release the lock of its parent."""
    if group.rank == 1:
        subprocess.run(["true"], check=True)
        child = os.fork()
        if child == 0:
            os.closerange(3, 4096)
            os._exit(0)
        os.waitpid(child, 0)
        time.sleep(0.1)  # the other rank waits meanwhile, and checks that this one is alive
    exchange(group, (1, 1), (1, 1))


def named(name, function, *arguments):
    def run():
        return function(*arguments)

    run.__name__ = name
    check(run)


def counts_of(*counts):
    return Tensor(np.array(counts, np.int32))


def exchange(group, send, receive, rows=ROWS, hidden=HIDDEN):
    """Exchanges ones eagerly and waits for the result."""
    rows_QH = Tensor(np.ones((rows, hidden), np.float32))
    out, order = grouped_all_to_all(rows_QH, counts_of(*send), counts_of(*receive), CAPACITY, group, first_order())
    return out.asnumpy(), order.asnumpy()


def refusals():
    """Records the errors of both ranks for calls that one refuses, each in its own group of two."""
    me = RANK % 2

    def pair_of(name, **options):
        return join(f"{name}{RANK // 2}", me, 2, **({"timeout": 20} | options))

    cases = {
        "plans differ": [((1, 2), (1, 3)), ((2, 1), (2, 1))],
        "widths differ": [((1, 2), (1, 2)), ((2, 1), (2, 1))],
        "negative": [((1, -2), (1, 2)), ((2, 1), (2, 1))],
        "sends too much": [((1, ROWS), (1, 2)), ((2, 1), (ROWS, 1))],
        "receives too much": [((1, 2), (1, CAPACITY)), ((2, 1), (2, 1))],
        "oversize": [((1, 11), (1, 1)), ((1, 1), (11, 1))],
    }
    for name, plans in cases.items():
        group = pair_of(name, capacity_bytes=100 if name == "oversize" else 1 << 20)
        hidden = 200 if name == "oversize" else HIDDEN + (me if name == "widths differ" else 0)
        results[name] = refusal(exchange, group, *plans[me], ROWS, hidden)
        results[f"{name}, again"] = refusal(exchange, group, (1, 1), (1, 1))
        group.close()
    group = pair_of("ids")
    case = dispatch_case(2)
    case["token_ids"][1][3] = 99 if me else 3

    def compiled_dispatch():
        plan = counts_of_chunk(dispatch_case(2), 2, 0, 1)
        names = ("x", "token_ids", "slot_ids")
        inputs = [Tensor(case[name][me]) for name in names] + [Tensor(case["table"]), Tensor(plan[me])]

        def run(x, ids, slots, table, send_R, receive_R):
            return dispatch_all_to_all(
                x, ids, slots, table, case["experts"], send_R, receive_R, 48, group, first_order()
            )[0]

        ms.jit(run)(*inputs, Tensor(plan[:, me].copy())).asnumpy()

    results["bad id"] = refusal(compiled_dispatch)
    results["left"] = refusal(leave_or_exchange, pair_of("left"), me)
    results["closed"] = refusal(exchange, group_closed(), (1,), (1,))


def leave_or_exchange(group, me):
    if me == 1:
        group.close()
    else:
        exchange(group, (1, 1), (1, 1))


def group_closed():
    group = join("solo", 0, 1)
    group.close()
    return group


def barrier(name, rank, size):
    """Returns when all ranks have arrived: processes do not start at the same time."""
    join(name, rank, size).close()


def joins():
    """Records the errors of groups that cannot be formed."""
    barrier("start", RANK, 4)
    if RANK < 3:  # rank 3 never comes
        results["absent"] = refusal(lambda: join("absent", RANK, 4, timeout=2))
    if RANK > 0:  # nor does rank 0
        results["absent host"] = refusal(lambda: join("absent host", RANK, 4, timeout=2))
    if RANK < 3:
        results["same rank"] = refusal(lambda: join("same rank", min(RANK, 1), 4, timeout=10))
        barrier("all three", RANK, 3)
    if RANK in (0, 2):
        results["other size"] = refusal(lambda: join("other size", RANK, 3 + (RANK == 2), timeout=10))
    group = join("open", RANK, 4)
    if RANK == 0:
        results["open already"] = refusal(lambda: join("open", 0, 4, timeout=1))
    exchange(group, (1, 1, 1, 1), (1, 1, 1, 1))
    group.close()
    group = join("open", RANK, 4)  # the name is free again
    exchange(group, (1, 1, 1, 1), (1, 1, 1, 1))
    group.close()
    del os.environ["MINDPANGU_JOB_ID"]
    results["no job"] = refusal(lambda: join("no job", 0, 2))


def fates():
    """Kills rank 3 and stops rank 2, each during exchanges with ranks 0 and 1."""

    def until_refused(group, signal_number):
        if group.rank == 2:
            threading.Timer(0.3, os.kill, (os.getpid(), signal_number)).start()
        ones = [1] * group.size

        def forever():
            while True:
                exchange(group, ones, ones)

        return refusal(forever)

    barrier("start", RANK, 4)
    if RANK != 2:
        group = join("killed", {0: 0, 1: 1, 3: 2}[RANK], 3, timeout=20)
        results["killed"] = until_refused(group, signal.SIGKILL)
    if RANK != 3:
        barrier("after the kill", RANK, 3)
        group = join("stopped", RANK, 3, timeout=2)
        results["stopped"] = until_refused(group, signal.SIGSTOP)


def hold():
    """Fills 64 MB of the group's memory, reports it, and waits to be killed."""
    group = join("hold", RANK, 2)
    for _ in range(2):
        exchange(group, (ROWS, 0) if RANK else (0, ROWS), (0, ROWS) if RANK == 0 else (ROWS, 0), ROWS, 1 << 20)
    named("held", group.statistics)
    time.sleep(120)


def main():
    ms.set_context(mode=ms.PYNATIVE_MODE)
    if SCENARIO == "checks":
        pair = join(f"pair{RANK // 2}", RANK % 2, 2)
        all_checks(pair, join("quad", RANK, 4), rounds=1000, repeats=30)
        named("fork", fork_check, pair)
    elif SCENARIO == "composed":
        ms.communication.init()
        first = RANK // 2 * 2
        pair = join(f"pair{RANK // 2}", RANK % 2, 2, ranks=[first, first + 1])
        all_checks(pair, join("quad", RANK, 4, ranks=[0, 1, 2, 3]), rounds=10, repeats=3, chunkings=(2,))
    else:
        {"refusals": refusals, "joins": joins, "fates": fates, "hold": hold}[SCENARIO]()

    def finished():
        return "ok"

    check(finished)


main()
