"""Compiles the training step of one simulated rank for Ascend. tools/compile_offline.py runs this in a child process.

The functions are those that training compiles (`CompiledFunctions`, `DenseAdam`). Weights are zeros, and nothing runs:
a simulated device compiles a function when it is called, and then fails to find a way to run it.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


def compile_step(config: Config, rank: int) -> dict[str, Any]:
    """Compiles every function of a step and describes the graphs, as JSON values.

    Returns:
        "functions": function → its collectives, inputs, live bytes, and order of operators (`_describe_graph`).
        "groups": kind of group → its ranks. "operators": which form each of our operators has.
        "slabs", "counts": number of inputs of `upper_step` that are experts, and that are counts of an exchange.
    """
    layers.normal = lambda seed, name, shape, std: np.zeros(shape, np.float32)  # zeros occupy no memory until written
    mesh = Mesh.from_config(config)
    groups = {}

    def name_of(kind: str, members: Ranks) -> str:
        if len(members) == 1:
            return ""
        communication.create_group(kind, list(members))  # also for all ranks: the graph tells groups apart by name
        groups[kind] = list(members)
        return kind

    processes = Processes(mesh, rank, name_of)
    exchange = None
    if mesh.members > 1:
        members = mesh.exchange_group(rank)
        name = name_of("exchange", members)
        exchange = Group(name, members.index(rank), len(members), -1, AllToAll(name))
    decoder = Decoder(config, Vocabularies.build(config, build_domains(config)), processes.tensor, exchange)
    slabs = _slabs(config, mesh, rank)
    compiled = CompiledFunctions(decoder, len(slabs))

    inputs = _inputs(config)
    h_TH = inputs[0]
    rows_BS = inputs[1]
    capacity, counts = _exchange_inputs(config, exchange)
    functions = {
        "lower_forward": _describe_graph(compiled.lower_forward, rows_BS, rows_BS),
        "upper_step": _describe_graph(compiled.upper_step, 0, capacity, *inputs, *slabs, *counts),
        "lower_backward": _describe_graph(compiled.lower_backward, rows_BS, rows_BS, h_TH),
    }
    functions |= _optimizer_graphs(config, decoder, processes)
    if processes.replicas.size > 1:
        gradients = [np.zeros(slab.shape, np.float32) for slab in slabs[: len(expert_shapes(config))]]  # of one layer
        functions["expert_sum"] = _describe_graph(all_reduce_over(processes.replicas), gradients)
    return {
        "functions": functions,
        "groups": groups,
        "operators": backends.describe(),
        "slabs": len(slabs),
        "counts": len(counts),
    }


def _slabs(config: Config, mesh: Mesh, rank: int) -> list[Tensor]:
    """Returns the experts of a micro-batch, with the shapes that this rank's store returns."""
    domains = build_domains(config)
    share = ExpertShare.from_mesh(mesh, mesh.coordinates(rank), domain_groups(config, domains))
    num_experts = len(share.experts(max(domain.num_experts for domain in domains)))
    return [
        _zeros((num_experts, *share.tensor_slice(name, shape).local_shape), expert_dtype(config))
        for _ in range(config.model.rre_layers * config.data.domains_per_step)
        for name, shape in expert_shapes(config).items()
    ]


def _inputs(config: Config) -> list[Tensor]:
    """Returns the inputs of the upper step that precede its experts."""
    model = config.model
    batch = config.training.local_batch_size
    slots = config.data.domains_per_step
    ids_BS = _zeros((batch, model.seq_length), np.int32)
    slots_B = _zeros((batch,), np.int32)
    h_TH = _zeros((batch * model.seq_length, model.hidden_size), ms.dtype_to_nptype(compute_dtype(config)))
    tables_LDV = _zeros((model.rre_layers, slots, model.vocab_size), np.int32)
    return [h_TH, ids_BS, ids_BS, ids_BS, _zeros(ids_BS.shape, np.float32), slots_B, slots_B, tables_LDV]


def _exchange_inputs(config: Config, exchange: Group | None) -> tuple[int, list[Tensor]]:
    """Returns the capacity of an exchange, and the inputs of the upper step that follow its experts."""
    if exchange is None:
        return 0, []
    local = max(domain.num_experts for domain in build_domains(config)) // exchange.size
    rows_LR = _zeros((config.model.rre_layers, exchange.size), np.int32)
    arriving_LRG = _zeros((*rows_LR.shape, config.data.domains_per_step * local), np.int32)
    tokens = config.training.local_batch_size * config.model.seq_length
    return capacities(tokens, exchange.size)[0], [rows_LR, rows_LR, arriving_LRG]


def _optimizer_graphs(config: Config, decoder: Decoder, processes: Processes) -> dict[str, Any]:
    sharding = config.parallelism.optimizer_sharding
    optimizer = DenseAdam(decoder.parameters, config.optimizer, processes.dense, sharding)
    graphs = {}
    if processes.dense.size > 1:
        for name, divided in (("all_reduce", False), ("reduce_scatter", True)):
            gradients = [
                _zeros(parameter.shape, np.float32)
                for key, parameter in decoder.parameters.items()
                if optimizer.divided[key] == divided
            ]
            if gradients:
                graphs[name] = _describe_graph(getattr(optimizer, name), *gradients)
    rows = [_zeros(moment.shape, np.float32) for moment in optimizer.moment1.values()]
    graphs["update"] = _describe_graph(optimizer.apply, _zeros((8,), np.float32), *rows)
    if any(optimizer.divided.values()):
        graphs["pull_rows"] = _describe_graph(optimizer.pull_rows)
        graphs["push_rows"] = _describe_graph(optimizer.push_rows)
    return graphs


def _zeros(shape: tuple[int, ...], dtype: type) -> Tensor:
    return Tensor.from_numpy(np.zeros(shape, dtype))


def _describe_graph(function: Callable, *arguments: Any) -> dict[str, Any]:
    """Compiles a function for these arguments and describes its graph."""
    with _saved_graphs(Path("graphs")) as folder:
        try:
            function(*arguments)
        except RuntimeError as error:
            if "Can't find run graph func" not in str(error):
                raise
        # files are written in the order of compilation; the last one is the function itself
        path = max(folder.rglob("*validate*.ir"), key=lambda path: path.stat().st_mtime_ns)
        nodes = graph.read_graph(path)
        parameters, inputs = graph.inputs(path)
    return {
        "collectives": [(*key, *value) for key, value in graph.collectives(nodes).items()],
        "parameters": parameters,
        "inputs": inputs,
        "live": graph.live_bytes(nodes),
        "order": graph.order(nodes),
    }


@contextlib.contextmanager
def _saved_graphs(parent: Path) -> Iterator[Path]:
    """Yields a new subfolder in which MindSpore saves the graphs that it compiles in this block."""
    num_folders = len(list(parent.glob("*"))) if parent.exists() else 0
    folder = parent / str(num_folders)
    ms.set_context(save_graphs=1, save_graphs_path=str(folder))
    try:
        yield folder
    finally:
        ms.set_context(save_graphs=0)
