"""Which architectures a budget of parameters allows: depth × width × expansion, and a random sample of them.

Depth and width are chosen, and the expansion (FFN width / width) follows from the budget. It alone can: a layer more or
less misses a budget by a tenth, and a step of the width by more, but 8 FFN neurons are next to nothing.
"""

import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from mindpangu.config import Config, check
from mindpangu.errors import ConfigError
from mindpangu.model.parameter_count import count_parameters, in_words

FFN_MULTIPLE = 8


@dataclass(frozen=True)
class Range:
    """lowest … highest, both included."""

    lowest: float
    highest: float

    @staticmethod
    def parse(option: str, text: str) -> "Range":
        """Reads "2:8", or "4" for 4:4. Raises ConfigError for anything else, or for numbers that are not above 0."""
        words = text.split(":")
        try:
            lowest, highest = float(words[0]), float(words[-1])
        except ValueError:
            lowest, highest = 0.0, 0.0
        if len(words) > 2 or not 0 < lowest <= highest < float("inf"):
            raise ConfigError(f"{option} is {text!r}; allowed: LOWEST:HIGHEST, both above 0, as 2:8")
        return Range(lowest, highest)

    def __contains__(self, value: float) -> bool:
        return self.lowest <= value <= self.highest

    def __str__(self) -> str:
        return f"{self.lowest:g}:{self.highest:g}"


@dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes:
        budget: parameters of a point, all of them: embedding and the experts of RRE layers too.
        depth: layers. width: of the residual stream, in multiples of head_size. expansion: FFN width / width.
        head_size: width of an attention head; there are as many heads as fit.
        tolerance: how far from the budget a point may be, as a share of it.
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
        """For a report."""
        ranges = {name: str(getattr(self, name)) for name in ("depth", "width", "expansion")}
        return {"budget": self.budget, "tolerance": self.tolerance, "head_size": self.head_size} | ranges


@dataclass(frozen=True)
class Point:
    """An architecture: depth layers of this width, and the number of parameters that come of it."""

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
        """Of its run folder."""
        return f"depth{self.depth:03d}_width{self.width:05d}_ffn{self.ffn_width:05d}"

    def apply(self, config: Config) -> Config:
        """A configuration with this architecture."""
        return replace(config, model=_sized(config, self.depth, self.width, self.ffn_width, self.num_heads))

    def to_dict(self) -> dict[str, Any]:
        """For a report."""
        return asdict(self) | {"expansion": self.expansion}


def enumerate_points(config: Config, space: Space) -> list[Point]:
    """All points of a space. For each depth and width there is one: of the FFN widths that are multiples of 8 and have
    an allowed expansion, the one whose `count_parameters` is nearest to the budget, if that is within the tolerance.

    Raises:
        ConfigError: there is none; says what the ranges can reach.
    """
    points: list[Point] = []
    bounds: list[int] = []
    nearest = 0
    for depth in _whole(space.depth, 1):
        if depth < config.model.rre_layers:
            continue
        for width in _whole(space.width, space.head_size):
            heads = width // space.head_size
            narrowest = -int(-space.expansion.lowest * width // FFN_MULTIPLE)
            widest = int(space.expansion.highest * width // FFN_MULTIPLE)
            if narrowest > widest:
                continue

            def count(steps: int, sizes: tuple[int, int, int] = (depth, width, heads)) -> int:
                depth, width, heads = sizes
                model = _sized(config, depth, width, steps * FFN_MULTIPLE, heads)
                return count_parameters(replace(config, model=model)).total

            least, most = count(narrowest), count(widest)
            bounds += [least, most]
            # the count grows by the same number with every step
            slope = (most - least) / max(widest - narrowest, 1)
            steps = narrowest + round((min(max(space.budget, least), most) - least) / slope) if slope else narrowest
            total = count(steps)
            nearest = min(nearest, total, key=lambda reached: abs(reached - space.budget))
            if abs(total - space.budget) <= space.tolerance * space.budget:
                points.append(Point(depth, width, steps * FFN_MULTIPLE, heads, total))
    if not points:
        raise ConfigError(_why_none(config, space, bounds, nearest))
    for point in points:
        check(point.apply(config))
    return points


def sample_points(points: Iterable[Point], number: int, seed: int) -> list[Point]:
    """A random sample of distinct points: each takes a depth in turn, in random order, and a random width of it.

    So every depth is as frequent as it can be; drawing from all points alike would prefer those of many widths.

    Raises:
        ConfigError: fewer points than asked for.
    """
    points = list(points)
    if not 1 <= number <= len(points):
        raise ConfigError(
            f"--points is {number}; this budget and these ranges have {len(points)}. Ask for 1 to {len(points)}, or "
            "widen --depth, --width or --expansion"
        )
    rng = random.Random(f"architecture {seed}")
    of_depth: dict[int, list[Point]] = {}
    for point in points:
        of_depth.setdefault(point.depth, []).append(point)
    for same_depth in of_depth.values():
        rng.shuffle(same_depth)
    drawn: list[Point] = []
    while len(drawn) < number:
        turn = [depth for depth, left in of_depth.items() if left]
        drawn += [of_depth[depth].pop() for depth in rng.sample(turn, min(len(turn), number - len(drawn)))]
    return drawn


def _sized(config: Config, depth: int, width: int, ffn_width: int, heads: int):
    return replace(config.model, num_layers=depth, hidden_size=width, ffn_hidden_size=ffn_width, num_heads=heads)


def _whole(bounds: Range, multiple: int) -> range:
    first = -int(-bounds.lowest // multiple) * multiple
    return range(first, int(bounds.highest) + 1, multiple)


def _why_none(config: Config, space: Space, bounds: list[int], nearest: int) -> str:
    ranges = f"--depth {space.depth} --width {space.width} --expansion {space.expansion}"
    if not bounds:
        return (
            f"{ranges} hold no architecture: the width is a multiple of --head-size {space.head_size}, the FFN width "
            f"of {FFN_MULTIPLE}, and the depth at least model.rre_layers {config.model.rre_layers}"
        )
    if min(bounds) <= space.budget <= max(bounds):
        return (
            f"--budget {space.budget:,} is met by no point of {ranges} within --tolerance {space.tolerance:g}; the "
            f"nearest has {nearest:,} parameters. Widen a range or the tolerance"
        )
    return (
        f"--budget {space.budget:,} is out of reach: {ranges} with model.vocab_size {config.model.vocab_size} have "
        f"{min(bounds):,} ({in_words(min(bounds))}) to {max(bounds):,} ({in_words(max(bounds))}) parameters. Choose a "
        "budget between, or widen a range"
    )
