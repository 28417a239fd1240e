"""Which batches a further round trains on: p = softmax(loss), without replacement, in each part of the data by itself.

Multiple-round training is PanGu-π Pro's ("Rethinking Optimization and Architecture for Tiny Language Models",
arXiv:2402.02791): batches that the model still finds hard are met again more often than easy ones, and drawing from
every part keeps what was learned from the early ones. Only NumPy here; losses are `batch_losses.py`'s business.
"""

import hashlib
import json

import numpy as np
import numpy.typing as npt

from mindpangu.errors import TrainingError


def part_bounds(num_batches: int, parts: int) -> npt.NDArray[np.int64]:
    """int64 [parts + 1]: part i is the batches bounds[i] … bounds[i + 1] − 1; sizes differ by one at most.

    Raises:
        TrainingError: more parts than batches.
    """
    if parts > num_batches:
        raise TrainingError(
            f"--parts is {parts}, but a round has {num_batches} batches (training.steps); lower --parts"
        )
    return np.arange(parts + 1) * num_batches // parts


def counts_of_parts(bounds: npt.NDArray[np.int64], rate: float) -> npt.NDArray[np.int64]:
    """int64 [parts]: how many batches each part gives, so that all together give rate × batches, rounded.

    Raises:
        TrainingError: a part that would give none.
    """
    counts = np.diff(np.floor(rate * bounds + 0.5).astype(np.int64))
    if counts.min() < 1:
        raise TrainingError(
            f"--rate {rate:g} of {bounds[1] - bounds[0]} to {np.diff(bounds).max()} batches in a part is less than one "
            f"batch; raise --rate, or lower --parts ({len(counts)})"
        )
    return counts


def draw(losses_N: npt.NDArray[np.float64], count: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draws `count` of N batches one after the other, each time with probability softmax(loss) among those left.

    The p_i = exp(l_i) / Σ_j exp(l_j) of the authors' code (torch.multinomial without replacement). Drawn at once, by
    the Gumbel-top-k trick: the `count` largest of l_i + g_i with g_i ~ Gumbel(0, 1) have exactly this distribution
    (Kool, van Hoof & Welling 2019, theorem 1). No exponential is taken, so no loss is too large.

    Args:
        losses_N: float64 [N], finite. count: at most N.

    Returns:
        Their indices, ascending, int64 [count].
    """
    gumbel_N = generator.gumbel(size=len(losses_N))
    # a loss far below the largest one takes up all bits of the sum: then the noise alone decides between equal ones
    order = np.lexsort((gumbel_N, (losses_N - losses_N.max()) + gumbel_N))
    return np.sort(order[len(order) - count :])


def draw_round(
    losses_N: npt.NDArray[np.float64], rate: float, parts: int, seed: int, round: int
) -> npt.NDArray[np.int64]:
    """The batches of a round, ascending: so the parts come in their order, and batches of a part in theirs.

    Args:
        losses_N: float64 [N], of every batch of the data. rate: share of each part that is drawn.
        seed, round: with the number of the part they are the key of its random numbers.

    Raises:
        TrainingError: a loss that is not finite, or a part that would give no batch.
    """
    wrong = np.flatnonzero(~np.isfinite(losses_N))
    if len(wrong):
        raise TrainingError(
            f"the loss of batch {wrong[0] + 1} of {len(losses_N)} is {losses_N[wrong[0]]}; no probability can be made "
            "of it"
        )
    bounds = part_bounds(len(losses_N), parts)
    drawn = [
        start + draw(losses_N[start:stop], count, _generator(seed, round, part))
        for part, (start, stop, count) in enumerate(
            zip(bounds[:-1], bounds[1:], counts_of_parts(bounds, rate), strict=True)
        )
    ]
    return np.concatenate(drawn)


def _generator(seed: int, round: int, part: int) -> np.random.Generator:
    key = hashlib.blake2b(json.dumps(["rounds", seed, round, part]).encode("ascii"), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(key, "little"))
