"""Enumerates the architectures (depth × width × expansion) that fit a parameter budget, and samples them.

For each depth and width, the expansion (FFN width / width) is chosen to meet the budget. Only the expansion is fine
enough: one layer more or less misses a budget by a tenth, and one step of the width by more, but 8 FFN neurons are
negligible.
"""

import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from mindpangu.config import Config, ModelConfig, check
from mindpangu.errors import ConfigError
from mindpangu.model.parameter_count import count_parameters, in_words
from mindpangu.user_input import parse_number

FFN_MULTIPLE = 8

_MAX_SIZE = 1_000_000  # layers, channels, or expansion
_MAX_PAIRS = 100_000  # pairs of depth and width; each takes some 0.1 ms


@dataclass(frozen=True)
class Range:
    """A range from lowest to highest, both included."""

    lowest: float
    highest: float

    @staticmethod
    def parse(option: str, text: str) -> "Range":
        """Parses "2:8", or "4" for 4:4. Raises ConfigError for anything else and for numbers out of range."""
        words = text.split(":")
        try:
            lowest = parse_number(words[0])
            highest = parse_number(words[-1])
        except ValueError:
            lowest = highest = 0.0
        if len(words) > 2 or not 0 < lowest <= highest <= _MAX_SIZE:
            raise ConfigError(
                f"{option} is {text!r}; allowed: LOWEST:HIGHEST, both above 0 and at most {_MAX_SIZE:,}, e.g. 2:8"
            )
        return Range(lowest, highest)

    def __contains__(self, value: float) -> bool:
        return self.lowest <= value <= self.highest

    def __str__(self) -> str:
        return f"{self.lowest:g}:{self.highest:g}"


@dataclass(frozen=True)
class Space:
    """The search space.

    Attributes:
        budget: number of parameters of a point, including the embedding and the experts of RRE layers.
        depth: number of layers.
        width: width of the residual stream, in multiples of head_size.
        expansion: FFN width / width.
        head_size: width of an attention head; the number of heads is width / head_size.
        tolerance: allowed distance from the budget, as a share of it.
    """

    budget: int
    depth: Range
    width: Range
    expansion: Range
    head_size: int
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise ConfigError(f"--tolerance is {self.tolerance}; allowed: >= 0 and < 1")
        if self.head_size < 1:
            raise ConfigError(f"--head-size is {self.head_size}; allowed: >= 1")

    def to_dict(self) -> dict[str, Any]:
        """Returns the space as it appears in the JSON file."""
        ranges = {name: str(getattr(self, name)) for name in ("depth", "width", "expansion")}
        return {"budget": self.budget, "tolerance": self.tolerance, "head_size": self.head_size} | ranges


@dataclass(frozen=True)
class Point:
    """An architecture, and its number of parameters."""

    depth: int
    width: int
    ffn_width: int
    num_heads: int
    parameters: int

    @property
    def expansion(self) -> float:
        """FFN width / width."""
        return self.ffn_width / self.width

    @property
    def name(self) -> str:
        """Name of the point's run folder."""
        return f"depth{self.depth:03d}_width{self.width:05d}_ffn{self.ffn_width:05d}"

    def apply(self, config: Config) -> Config:
        """Returns the configuration with this architecture."""
        return replace(config, model=_sized(config, self.depth, self.width, self.ffn_width, self.num_heads))

    def to_dict(self) -> dict[str, Any]:
        """Returns the point as it appears in the JSON files."""
        return asdict(self) | {"expansion": self.expansion}


def enumerate_points(config: Config, space: Space) -> list[Point]:
    """Returns all points of a space, at most one for each depth and width.

    Among the FFN widths that are multiples of 8 and have an allowed expansion, takes the one whose parameter count is
    nearest to the budget, if it is within the tolerance.

    Raises:
        ConfigError: there are no points, and the message says which budgets the ranges can reach; or the ranges are too
            large to search.
    """
    depths = _multiples_within(space.depth, 1)
    widths = _multiples_within(space.width, space.head_size)
    if len(depths) * len(widths) > _MAX_PAIRS:
        raise ConfigError(
            f"--depth {space.depth} --width {space.width} have {len(depths) * len(widths):,} pairs of depth and width; "
            f"allowed: at most {_MAX_PAIRS:,}. Give smaller ranges"
        )
    points: list[Point] = []
    bounds: list[int] = []
    nearest = 0
    for depth in depths:
        if depth < config.model.rre_layers:
            continue
        for width in widths:
            heads = width // space.head_size
            narrowest = -int(-space.expansion.lowest * width // FFN_MULTIPLE)
            widest = int(space.expansion.highest * width // FFN_MULTIPLE)
            if narrowest > widest:
                continue
            least = _num_parameters(config, depth, width, narrowest * FFN_MULTIPLE, heads)
            most = _num_parameters(config, depth, width, widest * FFN_MULTIPLE, heads)
            bounds += [least, most]
            # the number of parameters is linear in the FFN width
            slope = (most - least) / max(widest - narrowest, 1)
            steps = narrowest + round((min(max(space.budget, least), most) - least) / slope) if slope else narrowest
            ffn_width = steps * FFN_MULTIPLE
            total = _num_parameters(config, depth, width, ffn_width, heads)
            nearest = min(nearest, total, key=lambda candidate: abs(candidate - space.budget))
            if abs(total - space.budget) <= space.tolerance * space.budget:
                points.append(Point(depth, width, ffn_width, heads, total))
    if not points:
        raise ConfigError(_no_points_message(config, space, bounds, nearest))
    for point in points:
        check(point.apply(config))
    return points


def sample_points(points: Iterable[Point], num_points: int, seed: int) -> list[Point]:
    """Draws distinct points: one from each depth in turn, in random order, with a random width.

    This makes the depths as equally frequent as possible. Drawing uniformly would favour depths with many widths.

    Raises:
        ConfigError: there are fewer points than asked for.
    """
    points = list(points)
    if not 1 <= num_points <= len(points):
        raise ConfigError(
            f"--points is {num_points}; this budget and these ranges have {len(points)}. Ask for 1 to {len(points)}, "
            "or widen --depth, --width or --expansion"
        )
    rng = random.Random(f"architecture {seed}")
    points_by_depth: dict[int, list[Point]] = {}
    for point in points:
        points_by_depth.setdefault(point.depth, []).append(point)
    for same_depth in points_by_depth.values():
        rng.shuffle(same_depth)
    drawn: list[Point] = []
    while len(drawn) < num_points:
        depths = [depth for depth, remaining in points_by_depth.items() if remaining]
        turn = rng.sample(depths, min(len(depths), num_points - len(drawn)))
        drawn += [points_by_depth[depth].pop() for depth in turn]
    return drawn


def _sized(config: Config, depth: int, width: int, ffn_width: int, heads: int) -> ModelConfig:
    return replace(config.model, num_layers=depth, hidden_size=width, ffn_hidden_size=ffn_width, num_heads=heads)


def _num_parameters(config: Config, depth: int, width: int, ffn_width: int, heads: int) -> int:
    return count_parameters(replace(config, model=_sized(config, depth, width, ffn_width, heads))).total


def _multiples_within(bounds: Range, multiple: int) -> range:
    first = -int(-bounds.lowest // multiple) * multiple
    return range(first, int(bounds.highest) + 1, multiple)


def _no_points_message(config: Config, space: Space, bounds: list[int], nearest: int) -> str:
    ranges = f"--depth {space.depth} --width {space.width} --expansion {space.expansion}"
    if not bounds:
        return (
            f"{ranges} contain no architecture: the width is a multiple of --head-size {space.head_size}, the FFN "
            f"width a multiple of {FFN_MULTIPLE}, and the depth at least model.rre_layers {config.model.rre_layers}"
        )
    if min(bounds) <= space.budget <= max(bounds):
        return (
            f"no point of {ranges} meets --budget {space.budget:,} within --tolerance {space.tolerance:g}; the nearest "
            f"has {nearest:,} parameters. Widen a range or the tolerance"
        )
    return (
        f"--budget {space.budget:,} is out of reach: {ranges} with model.vocab_size {config.model.vocab_size} have "
        f"{min(bounds):,} ({in_words(min(bounds))}) to {max(bounds):,} ({in_words(max(bounds))}) parameters. Choose a "
        "budget in between, or widen a range"
    )
