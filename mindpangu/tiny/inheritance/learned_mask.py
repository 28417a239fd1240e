"""Learned importance: one logit per channel, head and neuron, trained while the weights are frozen.

"Rethinking Optimization and Architecture for Tiny Language Models" (arXiv 2402.02791) describes a learnable mask on
each unit, relaxed so that gradients pass, a sparsity term, and frozen weights. The rest is ours:

    u = a + c · logistic noise             a: the logits, initially 0; c falls from 1 to 0
    m = 1 for the k largest u of a group, else 0     (forward)
    p = sigmoid(u / temperature),  ∂m/∂p := 1        (backward: straight-through, arXiv 1308.3432)
    loss(m) + sparsity · Σ over groups (mean(p) − k/n)²

A group is all channels, or the heads, neurons or bottleneck neurons of one layer; k units of its n are kept. Over the
first half of the steps k falls from n to the child's number of units, because the gradients of a model that suddenly
lost half of its units would say little. All groups are trained together, since the child loses units of all of them.
Adam's second moment is the mean over the group: with one per unit, small and large gradients would move a logit
equally.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mindpangu.config import ModelConfig
from mindpangu.errors import ConfigError
from mindpangu.model.coupling import Units, unit_shapes
from mindpangu.tiny.inheritance.importance import layer_mask
from mindpangu.tiny.inheritance.masked_loss import MaskedLoss

BETAS = (0.9, 0.99)
EPSILON = 1e-12


@dataclass(frozen=True)
class MaskTraining:
    """Hyperparameters of the learned mask; all values are ours.

    Attributes:
        steps: number of training steps, on one calibration batch each, in turn.
        learning_rate: Adam's learning rate for the logits.
        temperature: temperature of the sigmoid.
        sparsity: weight of the sparsity term.
        seed: seed of the noise.
    """

    steps: int = 200
    learning_rate: float = 0.1
    temperature: float = 1.0
    sparsity: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"--mask-steps is {self.steps}; a learned mask needs 1 or more")


@dataclass
class LogitGroup:
    """Logits of one kind of unit with their Adam state.

    Attributes:
        logits: float64 [G, n], one row per group.
        target: number of units that each group keeps in the end.
    """

    logits: np.ndarray
    target: int
    _moment1: np.ndarray = field(init=False)
    _moment2: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self._moment1 = np.zeros_like(self.logits)
        self._moment2 = np.zeros((len(self.logits), 1))

    def count(self, progress: float) -> int:
        """Returns how many units each group keeps after the given share of the steps."""
        total = self.logits.shape[1]
        return self.target + round((total - self.target) * max(0.0, 1 - 2 * progress))

    def update(self, gradient: np.ndarray, step: int, learning_rate: float) -> None:
        """Takes one Adam step; `step` counts from 1."""
        self._moment1 += (1 - BETAS[0]) * (gradient - self._moment1)
        self._moment2 += (1 - BETAS[1]) * ((gradient**2).mean(1, keepdims=True) - self._moment2)
        root = np.sqrt(self._moment2 / (1 - BETAS[1] ** step))
        self.logits -= learning_rate * self._moment1 / (1 - BETAS[0] ** step) / (root + EPSILON)


def hard_mask(u: np.ndarray, count: int) -> np.ndarray:
    """Returns float32 [G, n]: 1 for the `count` largest numbers of each row, else 0."""
    mask = np.zeros(u.shape, np.float32)
    np.put_along_axis(mask, np.argsort(-u, axis=1, kind="stable")[:, :count], 1.0, axis=1)
    return mask


def logit_gradient(u: np.ndarray, dmask: np.ndarray, count: int, settings: MaskTraining) -> np.ndarray:
    """Returns the gradient of loss + sparsity term with respect to the logits, straight through the gates.

    Args:
        u: [G, n], logits with noise.
        dmask: [G, n], gradient of the loss with respect to the hard mask.
        count: number of units that each group keeps at this step.

    Returns:
        float64 [G, n].
    """
    p = 1 / (1 + np.exp(-u / settings.temperature))
    total = u.shape[1]
    dsparsity = 2 * settings.sparsity * (p.mean(1, keepdims=True) - count / total) / total
    return (dmask + dsparsity) * p * (1 - p) / settings.temperature


def learned(
    loss: MaskedLoss,
    child: ModelConfig,
    layers: tuple[int, ...],
    settings: MaskTraining,
    progress: Callable[[Sequence[int]], Iterable[int]] = lambda steps: steps,
) -> Units:
    """Trains the mask and returns the logits of all units; float64.

    Args:
        child: model section of the child, whose sizes decide how many units are kept.
        layers: the layers that are kept.
        progress: wraps the steps, e.g. in a progress bar.
    """
    model = loss.config.model
    layers_L = layer_mask(model, layers)
    sizes = unit_shapes(child)
    shapes = unit_shapes(model)
    groups = {
        kind: LogitGroup(np.zeros((shape[0] if len(shape) == 2 else 1, shape[-1])), sizes[kind][-1])
        for kind, shape in shapes.items()
        if shape[-1] > sizes[kind][-1]
    }
    rng = np.random.default_rng(settings.seed)
    for step in progress(range(1, settings.steps + 1)):
        done = (step - 1) / settings.steps
        noisy = {
            kind: group.logits + (1 - done) * rng.logistic(size=group.logits.shape) for kind, group in groups.items()
        }
        counts = {kind: group.count(done) for kind, group in groups.items()}
        masks = dict(Units.full(model).items())
        masks |= {kind: hard_mask(u, counts[kind]).reshape(shapes[kind]) for kind, u in noisy.items()}
        batch = loss.batches[(step - 1) % len(loss.batches)]
        _, gradients = loss.gradients(Units(**masks), layers_L, [batch])
        for kind, group in groups.items():
            dmask = gradients.units.of(kind).reshape(group.logits.shape)
            group.update(logit_gradient(noisy[kind], dmask, counts[kind], settings), step, settings.learning_rate)
    logits = {
        kind: groups[kind].logits.reshape(shape) if kind in groups else np.zeros(shape)
        for kind, shape in shapes.items()
    }
    return Units(**logits)
