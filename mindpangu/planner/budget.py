"""Computes what one rank of a mesh stores and sends in a step. Pure arithmetic: no MindSpore, no allocation.

It follows the architecture rather than the code of the model, so that one can check the other:
`tools/compile_offline.py` compares it with the compiled graphs.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from mindpangu.config import Config, require_pangu_alpha
from mindpangu.data.route_plan import capacities
from mindpangu.domains import build_domains
from mindpangu.errors import ConfigError
from mindpangu.parallel.mesh import Mesh
from mindpangu.parallel.sharding import share

FLOAT = 4

Key = tuple[str, str, str]
"""(compiled function, collective, kind of group: "tensor", "exchange", "data", or "replicas")."""

Collective = tuple[str, str, str, int, int]
"""The three fields of a `Key`, the number of calls, and the total bytes of all calls."""


@dataclass(frozen=True)
class Budget:
    """Memory and traffic of one rank. Traffic is per micro-batch, except that of the update, which is per step.

    Attributes:
        parameters: number of dense parameters that the rank stores.
        weights: bytes of these parameters, float32.
        moments: bytes of the Adam moments that the rank stores, float32.
        slabs: bytes of the experts of a micro-batch; their gradients have the same size.
        collectives: key → (calls, bytes that the rank passes to all of them). An exchange of rows assumes the smallest
            buffer. "expert_sum" counts the experts of one layer and one domain among those that a step activates.
            Sums of single numbers are left out.
    """

    parameters: int
    weights: int
    moments: int
    slabs: int
    collectives: dict[Key, tuple[int, int]]

    @staticmethod
    def from_config(config: Config, rank: int = 0) -> "Budget":
        """Computes the budget of a rank of a PanGu-Σ.

        Raises:
            ConfigError: the model is dense (its step is compiled differently), or its architecture is not PanGu-α's.
        """
        if config.model.rre_layers == 0:
            raise ConfigError("a dense model (model.rre_layers 0) has no budget yet")
        require_pangu_alpha(config, "the budget")
        mesh = Mesh.from_config(config)
        shapes = list(_dense_shapes(config, mesh, rank))
        divided = [_size(shape) for shape in shapes if _is_divided(config, mesh, shape)]
        whole = [_size(shape) for shape in shapes if not _is_divided(config, mesh, shape)]
        collectives = [
            *_tensor_collectives(config, mesh),
            *_exchange_collectives(config, mesh),
            *_update_collectives(config, mesh, divided, whole),
        ]
        calls: Counter[Key] = Counter()
        sizes: Counter[Key] = Counter()
        for function, operator, kind, count, size in collectives:
            if count:
                calls[function, operator, kind] += count
                sizes[function, operator, kind] += size
        parameters = sum(divided) + sum(whole)
        return Budget(
            parameters=parameters,
            weights=parameters * FLOAT,
            moments=2 * FLOAT * (sum(divided) // mesh.data + sum(whole)),
            slabs=_slab_bytes(config, mesh),
            collectives={key: (calls[key], sizes[key]) for key in calls},
        )


def _dense_shapes(config: Config, mesh: Mesh, rank: int) -> Iterator[tuple[int, ...]]:
    """Yields the shape of this rank's share of each dense parameter."""
    model = config.model
    tensor = mesh.tensor
    hidden = model.hidden_size
    inner = model.ffn_hidden_size
    vocabularies = [vocabulary.vocab_size for vocabulary in config.domains.vocabularies] or [model.vocab_size]
    shares = [share(rows, rank % tensor, tensor) for rows in vocabularies]
    yield (sum(stop - start for start, stop in shares), hidden)
    yield from [(model.seq_length, hidden)] * 2  # positions, queries of the query layer
    yield from [(hidden,)] * (4 * model.num_layers + 2)  # LayerNorms
    for _ in range(model.num_layers):
        yield from [(hidden, hidden // tensor), (hidden // tensor,)] * 3
        yield from [(hidden // tensor, hidden), (hidden,)]
    for _ in range(model.num_layers - model.rre_layers):
        yield from [(hidden, inner // tensor), (inner // tensor,), (inner // tensor, hidden), (hidden,)]


def _is_divided(config: Config, mesh: Mesh, shape: tuple[int, ...]) -> bool:
    """True if each data-parallel rank updates only its rows of a parameter."""
    return config.parallelism.optimizer_sharding and mesh.data > 1 and len(shape) > 1 and shape[0] % mesh.data == 0


def _size(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 1 else shape[0] * shape[1]


def _activation_bytes(config: Config) -> int:
    """Returns the bytes of one number in the activations."""
    return FLOAT if config.context.precision == "fp32" else FLOAT // 2


def _slab_numbers(config: Config, mesh: Mesh) -> int:
    """Returns how many numbers the slabs of one layer and one domain slot hold on a rank."""
    model = config.model
    numbers_of_expert = 2 * model.hidden_size * model.ffn_hidden_size + model.ffn_hidden_size + model.hidden_size
    experts = max(domain.num_experts for domain in build_domains(config)) // mesh.members
    return experts * numbers_of_expert // mesh.tensor


def _slab_bytes(config: Config, mesh: Mesh) -> int:
    slots = config.model.rre_layers * config.data.domains_per_step
    return slots * _slab_numbers(config, mesh) * _activation_bytes(config)


def _tensor_collectives(config: Config, mesh: Mesh) -> list[Collective]:
    """Sums of activations: each block sums its ranks' outputs, and their input gradients in the backward pass."""
    if mesh.tensor == 1:
        return []
    model = config.model
    tokens = config.training.local_batch_size * model.seq_length
    rows = tokens * model.hidden_size * _activation_bytes(config)
    lookup = tokens * model.hidden_size * FLOAT
    routed = model.rre_layers
    dense = model.num_layers - routed
    exchanged = mesh.members > 1
    # forward: attention and FFN of each block. The backward pass recomputes these sums, except the last block's
    again = max(2 * dense - 1, 0)
    # attention forward and backward; the queries of the query layer; the experts if none are exchanged; the head
    upper = 2 * routed + 1 + (0 if exchanged else 2 * routed) + 1
    found = [
        ("lower_forward", "AllReduce", "tensor", 1 + 2 * dense, lookup + 2 * dense * rows),
        ("lower_backward", "AllReduce", "tensor", 1 + again + 2 * dense, lookup + (again + 2 * dense) * rows),
        ("upper_step", "AllReduce", "tensor", upper + 2, upper * rows + 2 * tokens * FLOAT),  # Σ exp, target's score
        ("upper_step", "AllGather", "tensor", 1, tokens * FLOAT),  # maximum
    ]
    if exchanged:
        buffer = _buffer_rows(config, mesh) * model.hidden_size * _activation_bytes(config)
        # columns are gathered after the exchange and scattered before it, forward and backward
        gathered = routed * (3 * rows + 2 * buffer) // mesh.tensor
        found += [
            ("upper_step", "AllGather", "tensor", 5 * routed, gathered),
            ("upper_step", "ReduceScatter", "tensor", 2 * routed, 2 * routed * buffer),
        ]
    return found


def _exchange_collectives(config: Config, mesh: Mesh) -> list[Collective]:
    """Exchanges of rows with the ranks of their experts, forth and back, in the forward and the backward pass.

    Each tensor-parallel rank sends its share of the columns.
    """
    if mesh.members == 1:
        return []
    tokens = config.training.local_batch_size * config.model.seq_length
    columns = config.model.hidden_size // mesh.tensor * _activation_bytes(config)
    routed = config.model.rre_layers
    sent = 2 * routed * (tokens + _buffer_rows(config, mesh)) * columns
    return [("upper_step", "AlltoAllV", "exchange", 4 * routed, sent)]


def _update_collectives(config: Config, mesh: Mesh, divided: list[int], whole: list[int]) -> list[Collective]:
    """Sums of gradients and gathers of updated weights.

    Args:
        divided: sizes of the parameters whose rows are divided among the data-parallel ranks.
        whole: sizes of the other dense parameters.
    """
    found = []
    if mesh.data > 1:
        found += [
            ("reduce_scatter", "ReduceScatter", "data", len(divided), sum(divided) * FLOAT),
            ("all_reduce", "AllReduce", "data", len(whole), sum(whole) * FLOAT),
            ("push_rows", "AllGather", "data", len(divided), sum(divided) // mesh.data * FLOAT),
        ]
    if mesh.replicas > 1:
        found.append(("expert_sum", "AllReduce", "replicas", 4, _slab_numbers(config, mesh) * FLOAT))
    return found


def _buffer_rows(config: Config, mesh: Mesh) -> int:
    """Returns the number of rows of the smallest receive buffer."""
    return capacities(config.training.local_batch_size * config.model.seq_length, mesh.members)[0]
