"""Groups of ranks that exchange rows: joining one, its statistics, leaving it."""

import ctypes
import fcntl
import functools
import os
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor

from ascend_ops import backends, native
from ascend_ops.grouped_all_to_all import rendezvous
from ascend_ops.grouped_all_to_all.composed import Exchange

JOB_VARIABLE = "MINDPANGU_JOB_ID"


@ms.jit_class
class Group:
    """A group as one of its ranks sees it; `join` makes one. Graph mode reads its attributes.

    Attributes:
        name: of the group, unique in its job.
        rank: this process's, inside the group.
        size: R, the number of ranks.
        handle: int64 [1], what the CPU kernels know it by; −1 for others.
        exchange: that of the composed or of the Ascend form; None for the CPU kernels.
        by_all_to_all: whether `exchange` takes counts (AlltoAllV), or indices of what all ranks have.
    """

    def __init__(self, name, rank, size, handle, exchange=None, descriptor=-1, listener=None):
        self.name, self.rank, self.size = name, rank, size
        self.handle = Tensor(np.array([handle], np.int64))
        self.exchange = exchange
        self.by_all_to_all = exchange is not None and not isinstance(exchange, Exchange)
        self._handle, self._descriptor, self._listener = handle, descriptor, listener

    def statistics(self) -> dict[str, int]:
        """Exchanges so far, bytes sent to other ranks, and bytes copied in all; the CPU kernels count, others do not.

        Raises:
            RuntimeError: the group is closed.
        """
        names = ("exchanges", "bytes_sent", "bytes_copied")
        if self.exchange is not None:
            return dict.fromkeys(names, 0)
        numbers = (ctypes.c_int64 * 3)()
        if not _kernels().group_statistics(self._handle, numbers):
            raise RuntimeError(f"group {self.name} is closed")
        return dict(zip(names, numbers, strict=True))

    def close(self) -> None:
        """Leaves the group and frees its memory. Other ranks' exchanges with this one fail from then on, and
        so do functions that were compiled with this group, also after joining it anew."""
        if self._handle > 0:
            _kernels().unregister_group(self._handle)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        if self._listener is not None:
            self._listener.close()
        self._descriptor, self._listener = -1, None


def join(
    name: str,
    rank: int,
    size: int,
    *,
    job: str | None = None,
    ranks: list[int] | None = None,
    nodes: list[int] | None = None,
    whole_nodes: bool = False,
    agree: Callable[[bool], bool] = bool,
    timeout: float = 60.0,
    capacity_bytes: int = 256 << 20,
) -> Group:
    """Joins a group; returns when all its ranks have.

    Args:
        name: of the group, unique in its job.
        rank: this process's place in the group.
        size: R, the number of ranks. A group of one needs nothing of what follows.
        job: tells the groups of jobs on one machine apart; None takes it from MINDPANGU_JOB_ID.
        ranks: the members' global ranks, which only the CPU kernels do not need (after mindspore's init()).
        nodes: all global ranks of the members' nodes, on Ascend: who exchanges where the group itself cannot.
        whole_nodes: they exchange in any case.
        agree: whether a flag is set on any rank of the job: all ranks take the same way. All of them join at once.
        timeout: seconds that joining may take, and that an exchange waits for a rank.
        capacity_bytes: what a rank can send to others in one exchange. Memory is only taken as far as it is used.

    Raises:
        ValueError: no job, or arguments that make no sense.
        TimeoutError: ranks that did not come, by number.
        RuntimeError: ranks that do not agree: one rank or size claimed twice, an open group of this name.
    """
    if not 0 <= rank < size:
        raise ValueError(f"join: rank {rank} of group {name} is outside its {size} ranks")
    if capacity_bytes < 1 or timeout <= 0:
        raise ValueError(f"join: capacity_bytes is {capacity_bytes}, timeout {timeout}; expected more than 0")
    backend = backends.chosen["grouped_all_to_all"]
    if backend != "cpu":
        return _join_by_collectives(name, rank, size, ranks, nodes, whole_nodes, agree, backend)
    if size == 1:
        return Group(name, rank, size, _register(name, -1, rank, size, capacity_bytes, timeout))
    job = job or os.environ.get(JOB_VARIABLE)
    if not job:
        raise ValueError(f"join: group {name} of {size} ranks needs the job's id: pass job, or set {JOB_VARIABLE}")
    return _join_shared(name, rank, size, job, timeout, capacity_bytes)


def _join_by_collectives(name, rank, size, ranks, nodes, whole_nodes, agree, backend):
    if size > 1:
        if ranks is None or len(ranks) != size:
            raise ValueError(
                f"join: the {backend} group {name} of {size} needs the global ranks of its members: {ranks}"
            )
        from mindspore.communication import create_group

        if not (whole_nodes and backend == "ascend"):
            create_group(name, list(ranks))
    if backend == "ascend":
        from ascend_ops.grouped_all_to_all.ascend import exchange_of_group

        around = None
        if nodes is not None and size > 1:
            around = f"{name}_nodes", [list(ranks).index(each) if each in ranks else -1 for each in nodes]
            create_group(around[0], list(nodes))
        return Group(name, rank, size, -1, exchange_of_group(name, rank, size, around, whole_nodes, agree))
    return Group(name, rank, size, -1, Exchange(name, rank, size))


def _join_shared(name, rank, size, job, timeout, capacity_bytes):
    handles = []

    def make_file() -> int:
        descriptor = os.memfd_create(f"mindpangu-{job}-{name}"[:200])
        os.ftruncate(descriptor, _kernels().group_file_bytes(size, capacity_bytes))
        return descriptor

    def enter(descriptor: int) -> None:
        # POSIX record locks belong to the process: closing any of its descriptors of this file would drop this one
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
        handles.append(_register(name, descriptor, rank, size, capacity_bytes, timeout))

    claim = rendezvous.Claim(name, rank, size, capacity_bytes)
    address = rendezvous.address(job, name)
    descriptor, listener = -1, None
    try:
        if rank == 0:
            descriptor, listener = rendezvous.host(address, claim, timeout, make_file, enter)
        else:
            descriptor = rendezvous.visit(address, claim, timeout, enter)
    except BaseException:
        for handle in handles:
            _kernels().unregister_group(handle)
        raise
    return Group(name, rank, size, handles[0], descriptor=descriptor, listener=listener)


def _register(name, descriptor, rank, size, capacity_bytes, timeout) -> int:
    problem = ctypes.create_string_buffer(512)
    handle = _kernels().register_group(
        name.encode(), descriptor, rank, size, capacity_bytes, timeout, problem, len(problem)
    )
    if not handle:
        raise RuntimeError(f"join: group {name}: {problem.value.decode(errors='replace')}")
    return handle


@functools.cache
def _kernels() -> ctypes.CDLL:
    """The library that MindSpore loads for the operator: loaded by the same path, it is the same one."""
    kernels = ctypes.CDLL(str(native.library("grouped_all_to_all")))
    kernels.group_file_bytes.restype = kernels.register_group.restype = ctypes.c_int64
    kernels.group_file_bytes.argtypes = [ctypes.c_int64] * 2
    integers = [ctypes.c_int] * 3
    kernels.register_group.argtypes = [
        ctypes.c_char_p,
        *integers,
        ctypes.c_int64,
        ctypes.c_double,
        ctypes.c_char_p,
        ctypes.c_int64,
    ]
    kernels.unregister_group.argtypes = [ctypes.c_int64]
    kernels.unregister_group.restype = None
    kernels.group_statistics.argtypes = [ctypes.c_int64, ctypes.POINTER(ctypes.c_int64)]
    return kernels
