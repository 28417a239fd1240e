"""Draws the batches of a further round: p = softmax(loss), without replacement, separately in each part of the data.

Multiple-round training comes from PanGu-π Pro ("Rethinking Optimization and Architecture for Tiny Language Models",
arXiv:2402.02791): batches that the model still finds hard are repeated more often than easy ones, and drawing from
every part of the data keeps what was learned from the early parts. Uses only NumPy; `batch_losses.py` provides the
losses.
"""

import hashlib
import json

import numpy as np
import numpy.typing as npt

from mindpangu.errors import TrainingError


def part_bounds(num_batches: int, parts: int) -> npt.NDArray[np.int64]:
    """Divides the batches into consecutive parts whose sizes differ by at most one.

    Returns:
        int64 [parts + 1]: part i is the batches bounds[i] … bounds[i + 1] − 1.

    Raises:
        TrainingError: there are more parts than batches.
    """
    if parts > num_batches:
        raise TrainingError(
            f"--parts is {parts}, but a round has {num_batches} batches (training.steps); lower --parts"
        )
    return np.arange(parts + 1) * num_batches // parts


def draws_per_part(bounds: npt.NDArray[np.int64], rate: float) -> npt.NDArray[np.int64]:
    """Returns how many batches to draw from each part, int64 [parts]. They add up to rate × batches, rounded.

    Raises:
        TrainingError: no batch would be drawn from some part.
    """
    counts = np.diff(np.floor(rate * bounds + 0.5).astype(np.int64))
    if counts.min() < 1:
        raise TrainingError(
            f"--rate {rate:g} of {bounds[1] - bounds[0]} to {np.diff(bounds).max()} batches in a part is less than one "
            f"batch; raise --rate, or lower --parts ({len(counts)})"
        )
    return counts


def draw(losses_J: npt.NDArray[np.float64], count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draws `count` of J batches one by one without replacement, with probability softmax(loss) among the rest.

    As in the authors' code, p_i = exp(l_i) / Σ_j exp(l_j) (torch.multinomial without replacement). Draws all at once
    with the Gumbel-top-k trick: the `count` largest of l_i + g_i with g_i ~ Gumbel(0, 1) have exactly this
    distribution (Kool, van Hoof & Welling 2019, theorem 1). No exponential is taken, so no loss is too large.

    Args:
        losses_J: float64 [J], finite.
        count: number of batches to draw, at most N.
        rng: source of the Gumbel noise.

    Returns:
        Indices of the drawn batches, ascending, int64 [count].
    """
    gumbel_J = rng.gumbel(size=len(losses_J))
    # a loss far below the largest one absorbs the noise in the sum; the second sort key, the noise, breaks such ties
    order = np.lexsort((gumbel_J, (losses_J - losses_J.max()) + gumbel_J))
    return np.sort(order[len(order) - count :])


def draw_round(
    losses_J: npt.NDArray[np.float64], rate: float, parts: int, seed: int, round: int
) -> npt.NDArray[np.int64]:
    """Draws the batches of a round.

    Args:
        losses_J: float64 [J], loss of every batch of the data.
        rate: share of each part that is drawn.
        parts: number of consecutive parts of the data.
        seed, round: together with the index of the part, the key of the part's random numbers.

    Returns:
        Indices of the drawn batches, ascending, int64.

    Raises:
        TrainingError: a loss is not finite, or no batch would be drawn from some part.
    """
    not_finite = np.flatnonzero(~np.isfinite(losses_J))
    if len(not_finite):
        first = not_finite[0]
        raise TrainingError(
            f"the loss of batch {first + 1} of {len(losses_J)} is {losses_J[first]}; it gives no probability"
        )
    bounds = part_bounds(len(losses_J), parts)
    counts = draws_per_part(bounds, rate)
    drawn = [
        start + draw(losses_J[start:stop], count, _part_rng(seed, round, part))
        for part, (start, stop, count) in enumerate(zip(bounds[:-1], bounds[1:], counts, strict=True))
    ]
    return np.concatenate(drawn)


def _part_rng(seed: int, round: int, part: int) -> np.random.Generator:
    key = hashlib.blake2b(json.dumps(["rounds", seed, round, part]).encode("ascii"), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(key, "little"))
