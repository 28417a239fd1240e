"""The step of one rank of a cluster, compiled for Ascend where there is none: what tools/compile_offline.py starts.

The functions are those that training compiles (`CompiledFunctions`, `DenseAdam`). Weights are zeros, and nothing runs:
a simulated device compiles a function when it is called, and then finds nothing to run it with.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, communication

from ascend_offline import graph
from ascend_ops import backends
from ascend_ops.grouped_all_to_all import Group
from ascend_ops.grouped_all_to_all.ascend import AllToAll
from mindpangu.config import Config
from mindpangu.data.domain_groups import domain_groups
from mindpangu.data.route_plan import capacities
from mindpangu.domains import build_domains
from mindpangu.experts.modes import all_reduce_over
from mindpangu.model import layers
from mindpangu.model.decoder import Decoder
from mindpangu.model.initialization import expert_shapes
from mindpangu.model.precision import compute_dtype, expert_dtype
from mindpangu.model.vocabularies import Vocabularies
from mindpangu.parallel.expert_share import ExpertShare
from mindpangu.parallel.mesh import Mesh, Ranks
from mindpangu.parallel.processes import Processes
from mindpangu.train.compiled import CompiledFunctions
from mindpangu.train.optimizer import DenseAdam


def compile_step(config: Config, rank: int) -> dict:
    """For JSON: function → its graph's collectives, inputs, live bytes and order; and the members of each group."""
    layers.normal = lambda seed, name, shape, std: np.zeros(shape, np.float32)  # the memory of zeros is never touched
    mesh, groups = Mesh.from_config(config), {}

    def name_of(kind: str, members: Ranks) -> str:
        if len(members) == 1:
            return ""
        communication.create_group(kind, list(members))  # also where it is all ranks: the graph tells them apart
        groups[kind] = list(members)
        return kind

    processes, exchange = Processes(mesh, rank, name_of), None
    if mesh.members > 1:
        members = mesh.exchange_group(rank)
        name = name_of("exchange", members)
        exchange = Group(name, members.index(rank), len(members), -1, AllToAll(name))
    decoder = Decoder(config, Vocabularies.build(config, build_domains(config)), processes.tensor, exchange)
    slabs = _slabs(config, mesh, rank)
    inputs = _inputs(config)
    capacity, counts = _exchange_inputs(config, exchange)
    h_TH, rows_BS = inputs[:2]
    functions = CompiledFunctions(decoder, len(slabs))
    found = {
        "lower_forward": _compiled(functions.lower_forward, rows_BS, rows_BS),
        "upper_step": _compiled(functions.upper_step, 0, capacity, *inputs, *slabs, *counts),
        "lower_backward": _compiled(functions.lower_backward, rows_BS, rows_BS, h_TH),
    } | _optimizer(config, decoder, processes)
    if processes.replicas.size > 1:
        of_layer = [np.zeros(slab.shape, np.float32) for slab in slabs[: len(expert_shapes(config))]]
        found["expert_sum"] = _compiled(all_reduce_over(processes.replicas), of_layer)
    return {
        "functions": found,
        "groups": groups,
        "operators": backends.describe(),
        "slabs": len(slabs),
        "counts": len(counts),
    }


def _slabs(config: Config, mesh: Mesh, rank: int) -> list[Tensor]:
    """The experts of a micro-batch, as the store of this rank would give them."""
    model, domains = config.model, build_domains(config)
    share = ExpertShare.from_mesh(mesh, mesh.coordinates(rank), domain_groups(config, domains))
    count = len(share.experts(max(domain.num_experts for domain in domains)))
    return [
        _zeros((count, *share.tensor_slice(name, shape).local_shape), expert_dtype(config))
        for _ in range(model.rre_layers * config.data.domains_per_step)
        for name, shape in expert_shapes(config).items()
    ]


def _inputs(config: Config) -> list[Tensor]:
    """The inputs of the upper step in front of its experts."""
    model, batch = config.model, config.training.local_batch_size
    slots = config.data.domains_per_step
    ids_BS = _zeros((batch, model.seq_length), np.int32)
    slots_B = _zeros((batch,), np.int32)
    h_TH = _zeros((batch * model.seq_length, model.hidden_size), ms.dtype_to_nptype(compute_dtype(config)))
    tables_LDV = _zeros((model.rre_layers, slots, model.vocab_size), np.int32)
    return [h_TH, ids_BS, ids_BS, ids_BS, _zeros(ids_BS.shape, np.float32), slots_B, slots_B, tables_LDV]


def _exchange_inputs(config: Config, exchange: Group | None) -> tuple[int, list[Tensor]]:
    """(capacity, the inputs of the upper step behind its experts)."""
    if exchange is None:
        return 0, []
    local = max(domain.num_experts for domain in build_domains(config)) // exchange.size
    rows_LR = _zeros((config.model.rre_layers, exchange.size), np.int32)
    arriving_LRG = _zeros((*rows_LR.shape, config.data.domains_per_step * local), np.int32)
    tokens = config.training.local_batch_size * config.model.seq_length
    return capacities(tokens, exchange.size)[0], [rows_LR, rows_LR, arriving_LRG]


def _optimizer(config: Config, decoder: Decoder, processes: Processes) -> dict:
    sharding = config.parallelism.optimizer_sharding
    optimizer = DenseAdam(decoder.parameters, config.optimizer, processes.dense, sharding)
    found, gradients = {}, {name: _zeros(each.shape, np.float32) for name, each in decoder.parameters.items()}
    if processes.dense.size > 1:
        for name, divided in (("all_reduce", False), ("reduce_scatter", True)):
            chosen = [each for key, each in gradients.items() if optimizer.divided[key] == divided]
            if chosen:
                found[name] = _compiled(getattr(optimizer, name), *chosen)
    number = _zeros((), np.float32)
    rows = [_zeros(moment.shape, np.float32) for moment in optimizer.moment1.values()]
    return found | {"update": _compiled(optimizer.apply, *[number] * 6, *rows)}


def _zeros(shape: tuple[int, ...], dtype: type) -> Tensor:
    return Tensor.from_numpy(np.zeros(shape, dtype))


def _compiled(function, *arguments) -> dict:
    """What is in the graph of a function for these arguments."""
    with _written_graphs(Path("graphs")) as folder:
        try:
            function(*arguments)
        except RuntimeError as error:
            if "Can't find run graph func" not in str(error):
                raise
        # written in this order; the last one is the function itself
        path = max(folder.rglob("*validate*.ir"), key=lambda path: path.stat().st_mtime_ns)
        nodes = graph.read_graph(path)
        named, others = graph.inputs(path)
    return {
        "collectives": [(*key, *value) for key, value in graph.collectives(nodes).items()],
        "parameters": named,
        "inputs": others,
        "live": graph.live_bytes(nodes),
        "order": graph.order(nodes),
    }


@contextlib.contextmanager
def _written_graphs(parent: Path) -> Iterator[Path]:
    folder = parent / str(len(list(parent.glob("*"))) if parent.exists() else 0)
    ms.set_context(save_graphs=1, save_graphs_path=str(folder))
    try:
        yield folder
    finally:
        ms.set_context(save_graphs=0)
