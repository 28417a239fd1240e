"""What one rank of a mesh stores and sends in a step, by arithmetic alone: no MindSpore, no allocation.

It follows the architecture and not the code of the model, so that one can check the other: `tools/compile_offline.py`
compares it with the compiled graphs.
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
"""(compiled function, collective, kind of group: "tensor", "exchange", "data" or "replicas")."""


@dataclass(frozen=True)
class Budget:
    """Of one rank and, for what it sends, one micro-batch; updates are once a step.

    Attributes:
        parameters: dense ones that it stores.
        weights, moments: bytes of these and of their Adam moments, float32.
        slabs: bytes of the experts that a micro-batch takes; their gradients are as large.
        collectives: (times, bytes that the rank gives to all of them). An exchange of rows counts what fits its
            smallest buffer; "expert_sum" is for the experts of one layer and domain, of those that a step activates.
            Sums of single numbers are not there.
    """

    parameters: int
    weights: int
    moments: int
    slabs: int
    collectives: dict[Key, tuple[int, int]]


def budget_of(config: Config, rank: int = 0) -> Budget:
    """The budget of a rank of a PanGu-Σ.

    Raises:
        ConfigError: a dense model, whose step is compiled in another way, or other parts than PanGu-α's.
    """
    if config.model.rre_layers == 0:
        raise ConfigError("a dense model (model.rre_layers 0) has no budget yet")
    require_pangu_alpha(config, "the budget")
    mesh = Mesh.from_config(config)
    shapes = list(_dense_shapes(config, mesh, rank))
    divided = [shape for shape in shapes if _is_divided(config, mesh, shape)]
    whole = [shape for shape in shapes if not _is_divided(config, mesh, shape)]
    sizes = {name: sum(map(_size, group)) for name, group in (("divided", divided), ("whole", whole))}
    times, found = Counter(), Counter()
    collectives = [*_of_tensor_group(config, mesh), *_of_exchange(config, mesh)]
    if mesh.data > 1:
        collectives += [
            ("sum_rows", "ReduceScatter", "data", len(divided), sizes["divided"] * FLOAT),
            ("sum_whole", "AllReduce", "data", len(whole), sizes["whole"] * FLOAT),
            ("update", "AllGather", "data", len(divided), sizes["divided"] // mesh.data * FLOAT),
        ]
    if mesh.replicas > 1:
        of_layer = _slabs(config, mesh) // _bytes(config) // (config.model.rre_layers * config.data.domains_per_step)
        collectives.append(("expert_sum", "AllReduce", "replicas", 4, of_layer * FLOAT))
    for function, operator, kind, count, size in collectives:
        if count:
            times[function, operator, kind] += count
            found[function, operator, kind] += size
    parameters = sizes["divided"] + sizes["whole"]
    return Budget(
        parameters=parameters,
        weights=parameters * FLOAT,
        moments=2 * FLOAT * (sizes["divided"] // mesh.data + sizes["whole"]),
        slabs=_slabs(config, mesh),
        collectives={key: (times[key], found[key]) for key in times},
    )


def _dense_shapes(config: Config, mesh: Mesh, rank: int) -> Iterator[tuple[int, ...]]:
    """Of each dense parameter, this rank's part."""
    model, tensor = config.model, mesh.tensor
    hidden, inner, length = model.hidden_size, model.ffn_hidden_size, model.seq_length
    vocabularies = [vocabulary.vocab_size for vocabulary in config.domains.vocabularies] or [model.vocab_size]
    shares = [share(rows, rank % tensor, tensor) for rows in vocabularies]
    yield (sum(stop - start for start, stop in shares), hidden)
    yield from [(length, hidden)] * 2  # positions, queries of the query layer
    yield from [(hidden,)] * (4 * model.num_layers + 2)  # LayerNorms
    for _ in range(model.num_layers):
        yield from [(hidden, hidden // tensor), (hidden // tensor,)] * 3
        yield from [(hidden // tensor, hidden), (hidden,)]
    for _ in range(model.num_layers - model.rre_layers):
        yield from [(hidden, inner // tensor), (inner // tensor,), (inner // tensor, hidden), (hidden,)]


def _is_divided(config: Config, mesh: Mesh, shape: tuple[int, ...]) -> bool:
    """Whether each data-parallel rank updates its rows of such a parameter."""
    return config.parallelism.optimizer_sharding and mesh.data > 1 and len(shape) > 1 and shape[0] % mesh.data == 0


def _size(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 1 else shape[0] * shape[1]


def _bytes(config: Config) -> int:
    """Of a number in the activations."""
    return FLOAT if config.context.precision == "fp32" else FLOAT // 2


def _slabs(config: Config, mesh: Mesh) -> int:
    model = config.model
    of_expert = 2 * model.hidden_size * model.ffn_hidden_size + model.ffn_hidden_size + model.hidden_size
    experts = max(domain.num_experts for domain in build_domains(config)) // mesh.members
    return model.rre_layers * config.data.domains_per_step * experts * of_expert // mesh.tensor * _bytes(config)


def _of_tensor_group(config: Config, mesh: Mesh) -> list[tuple[str, str, str, int, int]]:
    """Sums of activations. T tokens of H: each block adds up what its parts return, and backward what they take."""
    if mesh.tensor == 1:
        return []
    model = config.model
    tokens = config.training.local_batch_size * model.seq_length
    rows = tokens * model.hidden_size * _bytes(config)
    lookup = tokens * model.hidden_size * FLOAT
    dense, routed = model.num_layers - model.rre_layers, model.rre_layers
    exchanged = mesh.members > 1
    # forward: attention and FFN of each block. The backward pass needs these again, without the last block's result
    again = max(2 * dense - 1, 0)
    # attention forward and backward, and its queries in the query layer; the experts if they are all here; the head
    upper = 2 * routed + 1 + (0 if exchanged else 2 * routed) + 1
    found = [
        ("lower_forward", "AllReduce", "tensor", 1 + 2 * dense, lookup + 2 * dense * rows),
        ("lower_backward", "AllReduce", "tensor", 1 + again + 2 * dense, lookup + (again + 2 * dense) * rows),
        ("upper_step", "AllReduce", "tensor", upper + 2, upper * rows + 2 * tokens * FLOAT),  # Σ exp, target's score
        ("upper_step", "AllGather", "tensor", 1, tokens * FLOAT),  # maximum
    ]
    if exchanged:
        buffer = _buffer(config, mesh) * model.hidden_size * _bytes(config)
        # columns are joined behind the exchange and split before it, forward and backward
        gathered = routed * (3 * rows + 2 * buffer) // mesh.tensor
        found += [
            ("upper_step", "AllGather", "tensor", 5 * routed, gathered),
            ("upper_step", "ReduceScatter", "tensor", 2 * routed, 2 * routed * buffer),
        ]
    return found


def _of_exchange(config: Config, mesh: Mesh) -> list[tuple[str, str, str, int, int]]:
    """Rows go to their experts and back, forward and backward, in columns of 1 / tensor."""
    if mesh.members == 1:
        return []
    tokens = config.training.local_batch_size * config.model.seq_length
    columns = config.model.hidden_size // mesh.tensor * _bytes(config)
    routed = config.model.rre_layers
    sent = 2 * routed * (tokens + _buffer(config, mesh)) * columns
    return [("upper_step", "AlltoAllV", "exchange", 4 * routed, sent)]


def _buffer(config: Config, mesh: Mesh) -> int:
    """Rows of the smallest buffer for what arrives."""
    return capacities(config.training.local_batch_size * config.model.seq_length, mesh.members)[0]
