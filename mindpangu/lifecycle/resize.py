"""Changing the number of experts of a domain.

Growing preserves the model's function: an expert is split into copies of itself, and its tokens are divided among them.
Shrinking changes it: experts are merged into their mean, weighted by their token counts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mindpangu.lifecycle.blueprint import Blueprint, DomainContent, NewExpert, Origin
from mindpangu.lifecycle.domains import require_group_size
from mindpangu.model.initialization import expert_shapes
from mindpangu.routing.table import DomainTable


@dataclass(frozen=True)
class ResizedGroup:
    """The resized expert group of one layer.

    Attributes:
        experts_V: uint16, the new table.
        sources: index of a new expert → indices of the old experts that it is made from.
    """

    experts_V: np.ndarray
    sources: tuple[tuple[int, ...], ...]


def resize(blueprint: Blueprint, name: str, num_experts: int, counts_V: np.ndarray | None = None) -> Blueprint:
    """Returns the blueprint with another number of experts in a domain.

    Args:
        counts_V: int64, number of occurrences of each token in the domain's text; None counts each token once.

    Raises:
        ConfigError: `num_experts` is not between 1 and 65535, or exceeds the number of tokens.
    """
    blueprint.require_experts()
    blueprint.domain(name)
    content = blueprint.contents[name]
    table = content.table
    num_tokens = table.experts_LV.shape[1]
    require_group_size(num_experts, num_tokens)
    counts_V = np.ones(num_tokens, np.int64) if counts_V is None else counts_V
    layers = [resize_group(experts_V, table.num_experts, num_experts, counts_V) for experts_V in table.experts_LV]
    load_LE = [np.bincount(experts_V, counts_V, table.num_experts) for experts_V in table.experts_LV]

    def expert(layer: int, index: int) -> Origin | NewExpert:
        old_experts = layers[layer].sources[index]
        sources = [content.expert(layer, old) for old in old_experts]
        if len(sources) == 1:
            return sources[0]
        return merge_experts(sources, load_LE[layer][list(old_experts)], expert_shapes(blueprint.config))

    experts_LV = np.stack([layer.experts_V for layer in layers])
    new_table = DomainTable(name, num_experts, table.assignment, experts_LV)
    return blueprint.with_domain(name, DomainContent(new_table, expert))


def resize_group(experts_V: np.ndarray, old: int, new: int, counts_V: np.ndarray) -> ResizedGroup:
    """Returns a layer's group with another number of experts.

    Repeatedly splits the busiest expert, or merges the two idlest experts. Those that keep all their tokens keep their
    indices where possible.

    Args:
        experts_V: uint16, expert of each token.
        old: current number of experts.
        new: new number of experts.
        counts_V: int64, number of occurrences of each token.
    """
    tokens = {expert: np.flatnonzero(experts_V == expert) for expert in range(old)}
    sources: dict[int, tuple[int, ...]] = {expert: (expert,) for expert in range(old)}
    load = {expert: int(counts_V[tokens[expert]].sum()) for expert in range(old)}
    for added in range(old, new):
        # an expert of a single token cannot be split
        busiest = max((e for e in tokens if len(tokens[e]) > 1), key=lambda e: (load[e], len(tokens[e]), -e))
        by_count = tokens[busiest][np.argsort(-counts_V[tokens[busiest]], kind="stable")]
        for expert, share in ((busiest, by_count[::2]), (added, by_count[1::2])):
            tokens[expert] = share
            load[expert] = int(counts_V[share].sum())
        sources[added] = sources[busiest]
    while len(tokens) > new:
        first, second = sorted(sorted(tokens, key=lambda e: (load[e], e))[:2])
        tokens[first] = np.concatenate([tokens[first], tokens.pop(second)])
        load[first] += load.pop(second)
        sources[first] += sources.pop(second)
    experts_V = np.zeros_like(experts_V)
    order = _in_new_order(tokens, new)
    for index, expert in enumerate(order):
        experts_V[tokens[expert]] = index
    return ResizedGroup(experts_V, tuple(sources[expert] for expert in order))


def _in_new_order(experts: Mapping[int, object], new: int) -> list[int]:
    """Returns the expert for each new index: the one that already has this index, where there is one."""
    displaced = sorted(expert for expert in experts if expert >= new)
    return [index if index in experts else displaced.pop(0) for index in range(new)]


def merge_experts(
    sources: Sequence[Origin | NewExpert], load: np.ndarray, shapes: Mapping[str, tuple[int, ...]]
) -> NewExpert:
    """Returns the mean of some experts, moments included, weighted by their tokens. Keeps the highest step count."""
    weights = (load if load.sum() else np.ones(len(sources))).astype(np.float64)
    weights /= weights.sum()

    def make() -> dict[str, np.ndarray]:
        total: dict[str, np.ndarray] = {}
        for source, weight in zip(sources, weights, strict=True):
            for name, values in _tensors(source, shapes):
                total[name] = total.get(name, 0) + weight * values
        return {name: values.astype(np.float32) for name, values in total.items()}

    steps = [
        source.step_count if isinstance(source, NewExpert) else source.open(shapes).step_count for source in sources
    ]
    return NewExpert(make, max(steps))


def _tensors(source: Origin | NewExpert, shapes: Mapping[str, tuple[int, ...]]) -> Iterable[tuple[str, np.ndarray]]:
    if isinstance(source, NewExpert):
        return source.make().items()
    expert = source.open(shapes)
    return ((name, expert.read(name)) for name in expert.names)
