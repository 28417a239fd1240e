"""More or fewer experts in a domain.

Growing keeps the function of the model: an expert is split into copies of itself, among which its tokens are divided.
Shrinking merges experts into their mean, weighted by how many tokens each had; that does change the function.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mindpangu.lifecycle.blueprint import Blueprint, DomainContent, NewExpert, Origin
from mindpangu.lifecycle.domains import require_group_size
from mindpangu.model.initialization import expert_shapes
from mindpangu.routing.table import DomainTable


@dataclass(frozen=True)
class Regrouping:
    """One layer's new group.

    Attributes:
        experts_V: uint16, the new table. sources: new expert → the old experts that it is made of.
    """

    experts_V: np.ndarray
    sources: tuple[tuple[int, ...], ...]


def resize(blueprint: Blueprint, name: str, num_experts: int, counts_V: np.ndarray | None = None) -> Blueprint:
    """Gives a domain another number of experts.

    Args:
        counts_V: int64, how often each token occurs in the domain's text; None counts each token once.

    Raises:
        ConfigError: not between 1 and 65535 experts, or more experts than tokens.
    """
    blueprint.require_experts()
    blueprint.domain(name)
    content = blueprint.contents[name]
    table = content.table
    tokens = table.experts_LV.shape[1]
    require_group_size(num_experts, tokens)
    counts_V = np.ones(tokens, np.int64) if counts_V is None else counts_V
    layers = [regroup(experts_V, table.num_experts, num_experts, counts_V) for experts_V in table.experts_LV]
    load_LE = [np.bincount(experts_V, counts_V, table.num_experts) for experts_V in table.experts_LV]

    def expert(layer: int, index: int) -> Origin | NewExpert:
        olds = layers[layer].sources[index]
        origins = [content.expert(layer, old) for old in olds]
        if len(origins) == 1:
            return origins[0]
        return merged(origins, load_LE[layer][list(olds)], expert_shapes(blueprint.config))

    experts_LV = np.stack([layer.experts_V for layer in layers])
    return blueprint.with_domain(
        name, DomainContent(DomainTable(name, num_experts, table.assignment, experts_LV), expert)
    )


def regroup(experts_V: np.ndarray, old: int, new: int, counts_V: np.ndarray) -> Regrouping:
    """A layer's table for another number of experts: the busiest expert is split, or the two idlest are merged, again
    and again. Experts that keep all their tokens keep their numbers as far as there is room.

    Args:
        experts_V: uint16, expert of each token. counts_V: int64, occurrences of each token.
    """
    tokens = {expert: np.flatnonzero(experts_V == expert) for expert in range(old)}
    sources = {expert: (expert,) for expert in range(old)}
    load = {expert: int(counts_V[tokens[expert]].sum()) for expert in range(old)}
    for added in range(old, new):
        # an expert of a single token cannot be split
        busiest = max((e for e in tokens if len(tokens[e]) > 1), key=lambda e: (load[e], len(tokens[e]), -e))
        by_count = tokens[busiest][np.argsort(-counts_V[tokens[busiest]], kind="stable")]
        for expert, part in ((busiest, by_count[::2]), (added, by_count[1::2])):
            tokens[expert], load[expert] = part, int(counts_V[part].sum())
        sources[added] = sources[busiest]
    while len(tokens) > new:
        first, second = sorted(sorted(tokens, key=lambda e: (load[e], e))[:2])
        tokens[first] = np.concatenate([tokens[first], tokens.pop(second)])
        load[first] += load.pop(second)
        sources[first] += sources.pop(second)
    experts_V = np.zeros_like(experts_V)
    for number, expert in enumerate(_numbers(tokens, new)):
        experts_V[tokens[expert]] = number
    return Regrouping(experts_V, tuple(sources[expert] for expert in _numbers(tokens, new)))


def _numbers(experts: Mapping[int, object], new: int) -> list[int]:
    """Which expert gets each of the new numbers: its own where that is below `new`."""
    displaced = sorted(expert for expert in experts if expert >= new)
    return [number if number in experts else displaced.pop(0) for number in range(new)]


def merged(origins: Sequence[Origin | NewExpert], load: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> NewExpert:
    """The mean of some experts, moments included, weighted by their tokens; as often updated as the most updated."""
    weights = (load if load.sum() else np.ones(len(origins))).astype(np.float64)
    weights /= weights.sum()

    def make() -> dict[str, np.ndarray]:
        total: dict[str, np.ndarray] = {}
        for origin, weight in zip(origins, weights, strict=True):
            for name, values in _tensors(origin, shapes):
                total[name] = total.get(name, 0) + weight * values
        return {name: values.astype(np.float32) for name, values in total.items()}

    steps = [
        origin.step_count if isinstance(origin, NewExpert) else origin.open(shapes).step_count for origin in origins
    ]
    return NewExpert(make, max(steps))


def _tensors(source: Origin | NewExpert, shapes: Mapping[str, tuple[int, ...]]) -> Iterable[tuple[str, np.ndarray]]:
    if isinstance(source, NewExpert):
        return source.make().items()
    expert = source.open(shapes)
    return ((name, expert.read(name)) for name in expert.names)
