"""Cases `active` and `mapped`: cost depends on the active experts only, and a store may be larger than memory."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import psutil

from ascend_ops.bench.report import last_level_cache_bytes
from ecss_bench.records import Record, record
from ecss_bench.workload import Measured, Workload


def active_cases(hidden: int, tokens: int, rounds: int, steps: int, log: Callable[[str], None]) -> list[Record]:
    """Measures 2 active domains out of 4 and out of 40: the same work per step, with ten times the experts stored."""
    workloads = {domains: Workload(hidden, 10, domains=domains, active=2) for domains in (4, 40)}
    experts = {domains: workload.experts("host_ecss") for domains, workload in workloads.items()}
    measured: dict[int, list[Measured]] = {domains: [] for domains in workloads}
    for turn in range(rounds + 1):
        for domains, workload in workloads.items():
            run = workload.run(experts[domains], workload.steps(tokens, steps + 1))[1:]
            if turn:  # the first turn compiles
                measured[domains] += run
    active_bytes = 12 * workloads[4].expert_parameters * workloads[4].active_experts
    cache_bytes = last_level_cache_bytes()
    store_bytes = sum(12 * workload.expert_parameters * workload.num_experts for workload in workloads.values())
    larger = "larger" if active_bytes > 2 * cache_bytes else "not larger"
    note = (
        f"active weights and moments {active_bytes / 1e6:.0f} MB, {larger} than twice the last-level cache "
        f"({cache_bytes / 1e6:.0f} MB); both stores {store_bytes / 1e9:.1f} GB, "
        f"{store_bytes / psutil.virtual_memory().total:.0%} of memory"
    )
    log(note)
    records = [
        replace(record(f"active, {domains} domains", "host_ecss", workload, tokens, measured[domains]), note=note)
        for domains, workload in workloads.items()
    ]
    log(
        f"{records[0].experts_total} experts {records[0].step_s:.3f} s, {records[1].experts_total} experts "
        f"{records[1].step_s:.3f} s per step: ratio {records[1].step_s / records[0].step_s:.2f}"
    )
    return records


def mapped_case(hidden: int, tokens: int, steps: int, folder: Path, log: Callable[[str], None]) -> list[Record]:
    """Measures a mapped store in a child process whose control group allows a third of the store's size in memory."""
    expert_bytes = 12 * (8 * hidden * hidden + 5 * hidden)
    store_bytes = 5120 * expert_bytes
    limit = store_bytes // 3
    command = [sys.executable, __file__, json.dumps([hidden, tokens, steps, str(folder)])]
    with memory_limit(limit) as (enter, reason):
        if enter is None:
            log(f"mapped store: skipped, {reason}")
            return []
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(command, preexec_fn=enter, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"training in {limit / 1e9:.2f} GB failed ({done.returncode}): {done.stderr[-2000:]}")
    each = Record(**json.loads(done.stdout.splitlines()[-1]))
    each = replace(each, note=f"store {store_bytes / 1e9:.2f} GB, memory limit {limit / 1e9:.2f} GB; {each.note}")
    log(f"mapped store: {each.step_s:.3f} s per step; {each.note}")
    return [each]


@contextmanager
def memory_limit(num_bytes: int) -> Iterator[tuple[Callable[[], object] | None, str]]:
    """Creates a control group with a memory limit.

    Yields:
        (a function that a child process calls to enter the group, ""), or (None, the reason why there is no group).
    """
    name = f"mindpangu_bench_{os.getpid()}"
    for root, file in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root) / name
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / file).write_text(str(num_bytes))
        except OSError:
            group.rmdir()
            continue
        try:
            yield partial(_enter_group, group), ""
        finally:
            group.rmdir()
        return
    yield None, "this process cannot create a control group that limits memory (it takes root or a delegated group)"


def _enter_group(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


def _child(hidden: int, tokens: int, steps: int, folder: str) -> None:
    workload = Workload(hidden, 10, active=4, storage_folder=folder)
    experts = workload.experts("host_ecss", staging=False)
    measured = workload.run(experts, workload.steps(tokens, steps + 2))[2:]
    memory = psutil.Process().memory_full_info()
    note = f"resident {memory.rss / 1e9:.2f} GB, including {memory.shared / 1e9:.2f} GB shared with the file"
    print(json.dumps(asdict(record("mapped", "host_ecss", workload, tokens, measured, note=note))))


if __name__ == "__main__":
    _child(*json.loads(sys.argv[1]))
