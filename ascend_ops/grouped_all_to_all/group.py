"""Groups of ranks that exchange rows: joining and leaving a group, and its statistics."""

import ctypes
import fcntl
import functools
import os
import socket
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from ascend_ops import backends, native
from ascend_ops.grouped_all_to_all import rendezvous
from ascend_ops.grouped_all_to_all.composed import Exchange

JOB_VARIABLE = "MINDPANGU_JOB_ID"


@ms.jit_class
class Group:
    """A group from the point of view of one of its ranks; created by `join`. Graph mode reads its attributes.

    Attributes:
        name: name of the group, unique in its job.
        rank: this process's rank inside the group.
        size: R, the number of ranks.
        handle: int64 [1], the group's handle in the CPU kernels; −1 for other backends.
        exchange: the exchange of the composed or Ascend form; None for the CPU kernels.
        by_all_to_all: True if `exchange` takes counts (AlltoAllV), False if it takes indices into the rows of all
            ranks.
    """

    def __init__(
        self,
        name: str,
        rank: int,
        size: int,
        handle: int,
        exchange: nn.Cell | None = None,
        descriptor: int = -1,
        listener: socket.socket | None = None,
    ):
        self.name = name
        self.rank = rank
        self.size = size
        self.handle = Tensor(np.array([handle], np.int64))
        self.exchange = exchange
        self.by_all_to_all = exchange is not None and not isinstance(exchange, Exchange)
        self._handle = handle
        self._descriptor = descriptor
        self._listener = listener

    def statistics(self) -> dict[str, int]:
        """Returns the exchanges so far, bytes sent to other ranks, and bytes copied; only the CPU kernels count them.

        Raises:
            RuntimeError: the group is closed.
        """
        names = ("exchanges", "bytes_sent", "bytes_copied")
        if self.exchange is not None:
            return dict.fromkeys(names, 0)
        counts = (ctypes.c_int64 * 3)()
        if not _kernels().group_statistics(self._handle, counts):
            raise RuntimeError(f"group {self.name} is closed")
        return dict(zip(names, counts, strict=True))

    def close(self) -> None:
        """Leaves the group and frees its memory.

        From then on exchanges of other ranks with this one fail, and so do functions compiled with this group, even
        after joining it again.
        """
        if self._handle > 0:
            _kernels().unregister_group(self._handle)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        if self._listener is not None:
            self._listener.close()
        self._descriptor = -1
        self._listener = None


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
    """Joins a group; returns when all its ranks have joined.

    Args:
        name: name of the group, unique in its job.
        rank: this process's rank in the group.
        size: R, the number of ranks. A group of one rank needs none of the arguments below.
        job: distinguishes the groups of several jobs on one machine; None takes it from MINDPANGU_JOB_ID.
        ranks: the members' global ranks, which all backends but the CPU kernels need (after mindspore's init()).
        nodes: on Ascend, all global ranks of the members' nodes, which exchange together if the group by itself cannot.
        whole_nodes: let complete nodes exchange in any case.
        agree: returns whether a flag is set on any rank of the job, so that all ranks take the same branch. All ranks
            must join at the same time.
        timeout: seconds that joining may take, and that an exchange waits for a rank.
        capacity_bytes: maximum number of bytes that a rank can send to others in one exchange. Unused memory is not
            allocated.

    Raises:
        ValueError: there is no job, or an argument is invalid.
        TimeoutError: ranks did not join in time; the message lists them.
        RuntimeError: ranks disagree: a rank is claimed twice, sizes differ, or a group of this name is open.
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


def _join_by_collectives(
    name: str,
    rank: int,
    size: int,
    ranks: list[int] | None,
    nodes: list[int] | None,
    whole_nodes: bool,
    agree: Callable[[bool], bool],
    backend: str,
) -> Group:
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
            rank_in_group = {member: index for index, member in enumerate(ranks or ())}
            around = (f"{name}_nodes", [rank_in_group.get(each, -1) for each in nodes])
            create_group(around[0], list(nodes))
        return Group(name, rank, size, -1, exchange_of_group(name, rank, size, around, whole_nodes, agree))
    return Group(name, rank, size, -1, Exchange(name, rank, size))


def _join_shared(name: str, rank: int, size: int, job: str, timeout: float, capacity_bytes: int) -> Group:
    handles: list[int] = []

    def make_file() -> int:
        descriptor = os.memfd_create(f"mindpangu-{job}-{name}"[:200])
        os.ftruncate(descriptor, _kernels().group_file_bytes(size, capacity_bytes))
        return descriptor

    def enter(descriptor: int) -> None:
        # POSIX record locks belong to the process: closing any of its descriptors of this file would release this lock
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
        handles.append(_register(name, descriptor, rank, size, capacity_bytes, timeout))

    claim = rendezvous.Claim(name, rank, size, capacity_bytes)
    address = rendezvous.address(job, name)
    listener = None
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


def _register(name: str, descriptor: int, rank: int, size: int, capacity_bytes: int, timeout: float) -> int:
    problem = ctypes.create_string_buffer(512)
    handle = _kernels().register_group(
        name.encode(), descriptor, rank, size, capacity_bytes, timeout, problem, len(problem)
    )
    if not handle:
        raise RuntimeError(f"join: group {name}: {problem.value.decode(errors='replace')}")
    return handle


@functools.cache
def _kernels() -> ctypes.CDLL:
    """Loads the operator's library from the path that MindSpore uses, so that both share one copy."""
    kernels = ctypes.CDLL(str(native.library("grouped_all_to_all")))
    kernels.group_file_bytes.restype = ctypes.c_int64
    kernels.register_group.restype = ctypes.c_int64
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
