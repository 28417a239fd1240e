"""The ranks of a run: joining MindSpore's distributed engine, the groups of the mesh, and what the host adds up.

One process needs none of this: `Processes.alone()` has every function and talks to nobody.
"""

import logging
import os
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from ascend_ops.grouped_all_to_all import Group, join
from mindpangu.config import Config
from mindpangu.errors import ParallelError
from mindpangu.parallel.collectives import TensorGroup
from mindpangu.parallel.data_parallel import DataGroup
from mindpangu.parallel.mesh import Mesh, Ranks, broken_rule_of_910a

_log = logging.getLogger("mindpangu")


class Processes:
    """One rank's view of all.

    Attributes:
        mesh: who shares what. rank: this process. place: its coordinates. data: its data index.
        tensor: the group that shares its matrices. dense: the group that has the same dense parameters.
        exchange: the group that it exchanges rows with; None if there is nothing to exchange.
        replicas: the group that has the same experts.
    """

    def __init__(self, mesh: Mesh, rank: int, name_of: Callable[[str, Ranks], str], exchange: Group | None):
        self.mesh, self.rank, self.place, self.data = mesh, rank, mesh.place(rank), rank // mesh.tensor
        self.exchange = exchange
        members = mesh.tensor_group(rank)
        self.tensor = TensorGroup(name_of("tensor", members), members.index(rank), len(members))
        members = mesh.data_group(rank)
        self.dense = DataGroup(name_of("data", members), members.index(rank), len(members))
        members = mesh.expert_replicas(rank)
        self.replicas = DataGroup(name_of("replicas", members), members.index(rank), len(members))
        everybody = tuple(range(mesh.size))
        self._world = DataGroup(name_of("world", everybody), rank, mesh.size)

        @ms.jit
        def add_up(values):
            return self._world.sum(values)

        self._add_up = add_up

    @staticmethod
    def alone() -> "Processes":
        """A run of one process."""
        return Processes(Mesh(), 0, lambda kind, members: "", None)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """float32 [n], the same on all ranks: the sum over them."""
        if self.mesh.size == 1:
            return values
        return self._add_up(Tensor(values.astype(np.float32))).asnumpy()


def start_processes(config: Config) -> Processes:
    """Joins the other processes of a run, which msrun has started.

    Raises:
        ParallelError: there are other ranks than the configuration's mesh has.
    """
    mesh, found = Mesh.of(config), int(os.environ.get("RANK_SIZE", "1"))
    if found != mesh.size:
        raise ParallelError(
            f"parallelism asks for {mesh.size} processes (data_parallel {mesh.data} × tensor_parallel {mesh.tensor}), but "
            f"{found} were started; bash recipes/run_cpu_cluster.sh {mesh.size} starts so many on this machine"
        )
    if mesh.size == 1:
        return Processes.alone()
    from mindspore import communication

    communication.init()
    rank = communication.get_rank()
    on_ascend = config.context.device_target == "Ascend"

    def name_of(kind: str, members: Ranks) -> str:
        if len(members) == 1:
            return ""
        if len(members) == mesh.size:
            return communication.GlobalComm.WORLD_COMM_GROUP
        name = f"{kind}_{members[0]}"
        if on_ascend and (rule := broken_rule_of_910a(members)):
            _log.warning("group %s of ranks %s: %s, which 910A's HCCL does not allow", name, list(members), rule)
        communication.create_group(name, list(members))
        return name

    return Processes(mesh, rank, name_of, _exchange_group(config, mesh, rank))


def _exchange_group(config: Config, mesh: Mesh, rank: int) -> Group | None:
    members = mesh.exchange_group(rank)
    if len(members) == 1:
        return None
    return join(f"exchange_{members[0]}", members.index(rank), len(members), ranks=list(members))


def sums_of_squares(gradients) -> Tensor:
    """float32 [n]: the sum of squares of each."""
    return ops.stack([(gradient * gradient).sum() for gradient in gradients])
