"""The ranks of a run: MindSpore's distributed engine, the groups of the mesh, and sums over ranks on the host.

A single process needs none of this: `Processes.alone()` has the same interface and does not communicate.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from ascend_ops.grouped_all_to_all import Group, join
from ascend_ops.grouped_all_to_all.group import JOB_VARIABLE
from ascend_ops.native import OperatorError
from ascend_ops.waiting import wait_for
from mindpangu.config import Config
from mindpangu.errors import ParallelError
from mindpangu.locks import locked
from mindpangu.parallel.collectives import TensorGroup
from mindpangu.parallel.data_parallel import DataGroup
from mindpangu.parallel.mesh import Mesh, Ranks, broken_rule_of_910a
from mindpangu.parallel.watch import Watch, remove_earlier_jobs

_log = logging.getLogger("mindpangu")


class Processes:
    """All ranks of a run, as one of them sees them.

    Attributes:
        mesh: the arrangement of the ranks.
        rank: rank of this process.
        coordinates: its coordinates in the mesh.
        data: its data index.
        tensor: the group of ranks that share a layer's matrices.
        dense: the group of ranks that hold the same dense parameters.
        exchange: the group of ranks that exchange rows, set by `join_groups`; None if there is nothing to exchange.
        replicas: the group of ranks that hold the same experts.

    Args:
        name_of: creates a group of a kind with the given ranks and returns its name.
    """

    def __init__(self, mesh: Mesh, rank: int, name_of: Callable[[str, Ranks], str]):
        self.mesh = mesh
        self.rank = rank
        self.coordinates = mesh.coordinates(rank)
        self.data = rank // mesh.tensor
        self.exchange: Group | None = None
        members = mesh.tensor_group(rank)
        self.tensor = TensorGroup(name_of("tensor", members), members.index(rank), len(members))

        def group_of(kind: str, members: Ranks) -> DataGroup:
            return DataGroup(name_of(kind, members), members.index(rank), len(members))

        self.dense = group_of("data", mesh.data_group(rank))
        self.replicas = group_of("replicas", mesh.expert_replicas(rank))
        self._world = group_of("world", tuple(range(mesh.size)))

        @ms.jit
        def all_reduce(values):
            return self._world.all_reduce(values)

        self._all_reduce = all_reduce
        self._watch: Watch | None = None
        self._may_lower_priority = ms.get_context("device_target") == "CPU"

    @staticmethod
    def alone() -> "Processes":
        """Returns a run of one process."""
        return Processes(Mesh(), 0, lambda kind, members: "")

    @contextlib.contextmanager
    def watched(self, folder: Path, timeout: float) -> Iterator[None]:
        """Lets every rank watch the others inside the block; see `watch`.

        Args:
            folder: folder for the watch files, on a file system that all ranks see. Each job gets a subfolder, so that
                a job started by mistake does not disturb the first. Subfolders of jobs that have ended are removed.
            timeout: seconds that a rank may take for one activity.
        """
        if self.mesh.size == 1:
            yield
            return
        job = folder / self.draw_shared_name()
        with contextlib.ExitStack() as stack:
            if self.is_first:
                remove_earlier_jobs(folder)
                stack.enter_context(locked(job))
            self.barrier()
            self._watch = stack.enter_context(Watch(job, self.rank, self.mesh.size, timeout))
            yield

    def join_groups(self, config: Config) -> None:
        """Self-tests every process group with known numbers, then joins and tests the exchange group.

        Raises:
            ParallelError: a group computes a wrong sum; the message names it.
        """
        self._self_test()
        self.report_status(doing=f"joining the ranks that exchange tokens, {list(self.mesh.exchange_group(self.rank))}")
        self.exchange = _exchange_group(config, self)

    def _self_test(self) -> None:
        groups = {
            "of the same matrices": (self.tensor.reduce_from, self.mesh.tensor_group(self.rank)),
            "of the same dense parameters": (self.dense.all_reduce, self.mesh.data_group(self.rank)),
            "of the same experts": (self.replicas.all_reduce, self.mesh.expert_replicas(self.rank)),
            "of all ranks": (self._world.all_reduce, tuple(range(self.mesh.size))),
        }
        for name, (all_reduce, members) in groups.items():
            if len(members) == 1:
                continue
            self.report_status(doing=f"the self-test of the group {name}, {list(members)}")
            mine = np.zeros(self.mesh.size, np.float32)
            mine[self.rank] = self.rank + 1
            found = ms.jit(all_reduce)(Tensor(mine[None])).asnumpy()[0]
            wanted = np.zeros_like(mine)
            wanted[list(members)] = np.array(members) + 1
            if not np.array_equal(found, wanted):
                raise ParallelError(
                    f"the group {name}, ranks {list(members)}, computes a wrong sum: got {found.tolist()}, expected "
                    f"{wanted.tolist()}; see docs/cluster.md"
                )

    def report_status(self, step: int | None = None, doing: str | None = None) -> None:
        """Tells the watcher what this rank is doing; the other ranks print it if this one fails."""
        if self._watch is not None:
            self._watch.report_status(step, doing)

    def lower_priority(self) -> None:
        """Lowers this thread's priority so that MindSpore's worker threads, which must be running, get the cores.

        A thread that waits for MindSpore spins. If several processes share a CPU, it takes the cores from their
        kernels: two processes on two cores need five times as long for a step, three times less with this.
        """
        if self.mesh.size > 1 and self._may_lower_priority:
            self._may_lower_priority = False
            os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + 10)  # only of this thread

    @property
    def is_first(self) -> bool:
        """True on the rank that prints and that writes the files of which a run has only one."""
        return self.rank == 0

    def any_rank(self, flag: bool) -> bool:
        """True if the flag is set on any rank. All ranks must call it."""
        return self.any_ranks([flag])[0]

    def any_ranks(self, flags: Sequence[bool]) -> list[bool]:
        """Returns, for each flag, whether it is set on any rank. All ranks must call it."""
        return [bool(count) for count in self.all_reduce_sum(np.array(flags))]

    def broadcast(self, number: int) -> int:
        """Returns the first rank's number on all ranks. It must be >= 0 and below 2⁴⁸. All ranks must call this."""
        if self.mesh.size == 1:
            return number
        parts = divmod(number, 1 << 24) if self.is_first else (0, 0)  # a float32 holds 24 bits exactly
        high, low = self.all_reduce_sum(np.array(parts)).tolist()
        return (int(high) << 24) + int(low)

    def barrier(self) -> None:
        """Waits until every rank has called it."""
        self.any_rank(False)

    def draw_shared_name(self) -> str:
        """Draws a random name (`watch.JOB`) for this job, the same on all ranks. All ranks must call it."""
        drawn = np.frombuffer(os.urandom(8), np.uint16) if self.is_first else np.zeros(4, np.uint16)
        return "job-" + "".join(f"{int(part):04x}" for part in self.all_reduce_sum(drawn))  # exact in float32

    def all_reduce_sum(self, values: np.ndarray) -> np.ndarray:
        """Sums a vector over the ranks in float32. All ranks get the same result, and all must call it."""
        if self.mesh.size == 1:
            return values
        return wait_for(self._all_reduce(Tensor(values.astype(np.float32))))


def start_processes(config: Config, mesh: Mesh | None = None) -> Processes:
    """Connects to the other processes of a run, which msrun started. Call `Processes.join_groups` next.

    Args:
        mesh: the mesh; None for that of the configuration.

    Raises:
        ParallelError: the number of processes does not match the mesh.
    """
    mesh = mesh or Mesh.from_config(config)
    found = _num_started()
    if found != mesh.size:
        raise ParallelError(
            f"parallelism asks for {mesh.size} processes (data_parallel {mesh.data} × tensor_parallel {mesh.tensor}), "
            f"but {found} were started; bash recipes/run_cpu_cluster.sh {mesh.size} starts that many on this machine"
        )
    if mesh.size == 1:
        return Processes.alone()
    from mindspore import communication

    try:
        communication.init()
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next((line for line in lines if line.strip("-")), "no reason given")
        address = ":".join(_scheduler())
        raise ParallelError(
            f"MindSpore could not connect the {mesh.size} ranks through {address}, or lost one of them: {reason}"
        ) from None
    rank = communication.get_rank()
    on_ascend = config.context.device_target == "Ascend"

    def name_of(kind: str, members: Ranks) -> str:
        if len(members) == 1:
            return ""
        if len(members) == mesh.size:
            return communication.GlobalComm.WORLD_COMM_GROUP
        name = f"{kind}_{members[0]}"
        if on_ascend:
            _warn_of_910a(kind, members)
        communication.create_group(name, list(members))
        return name

    return Processes(mesh, rank, name_of)


def _num_started() -> int:
    """Returns the number of processes that msrun started; 1 without msrun."""
    text = os.environ.get("RANK_SIZE", "1")
    if not text.isdecimal():
        raise ParallelError(f"RANK_SIZE is {text!r}, not a number of processes, so msrun did not set it; unset it")
    return int(text)


def _job() -> str:
    """Returns an id that only the processes of this job share. msrun gives all of them the same scheduler address."""
    return os.environ.get(JOB_VARIABLE) or "-".join(_scheduler())


def _scheduler() -> tuple[str, str]:
    """Returns the host and the port of the scheduler, which msrun sets."""
    return os.environ.get("MS_SCHED_HOST", ""), os.environ.get("MS_SCHED_PORT", "")


def _warn_of_910a(kind: str, members: Ranks) -> None:
    if rule := broken_rule_of_910a(members):
        _log.warning("%s group of ranks %s: %s, which HCCL does not allow on 910A", kind, list(members), rule)


def _exchange_group(config: Config, processes: Processes) -> Group | None:
    mesh = processes.mesh
    rank = processes.rank
    members = mesh.exchange_group(rank)
    if len(members) == 1:
        return None
    if config.context.device_target == "Ascend" and config.parallelism.exchange == "group":
        _warn_of_910a("exchange", members)
    try:
        return join(
            f"exchange_{members[0]}",
            members.index(rank),
            len(members),
            job=_job(),
            ranks=list(members),
            nodes=list(mesh.node_exchange_group(rank)) if mesh.tensor > 1 else None,
            whole_nodes=config.parallelism.exchange == "node",
            agree=processes.any_rank,
        )
    except OperatorError:
        raise
    except (RuntimeError, TimeoutError) as error:
        raise ParallelError(f"the ranks that exchange tokens, {list(members)}, cannot join: {error}") from None
