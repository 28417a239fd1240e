"""The learned importance: a logit for every channel, head and neuron, trained while the weights stay as they are.

What "Rethinking Optimization and Architecture for Tiny Language Models" (arXiv 2402.02791) says of it: a learnable mask
on each unit, relaxed so that gradients pass, a term for sparsity, frozen weights. All the rest is ours:

    u = a + c · logistic noise             a: the logits, 0 at the start; c falls from 1 to 0
    m = 1 for the k largest u of a group, else 0     (forward)
    p = sigmoid(u / temperature),  ∂m/∂p := 1        (backward: straight-through, arXiv 1308.3432)
    loss(m) + sparsity · Σ over groups (mean(p) − k/n)²

A group is what loses the same number of units: all channels, or the heads, neurons or bottleneck neurons of one layer.
Over the first half of the steps k falls from all n units to those that the child has: of a model that has lost half of
everything at once, derivatives say little. All groups are trained together, as the child loses them together, with
Adam, whose second moment is the mean over the group: with one for each unit, small and large derivatives would move a
logit alike.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mindpangu.config import ModelConfig
from mindpangu.errors import ConfigError
from mindpangu.model.coupling import Units, unit_shapes
from mindpangu.tiny.inheritance.importance import layer_mask
from mindpangu.tiny.inheritance.masked_loss import MaskedLoss

BETAS, EPSILON = (0.9, 0.99), 1e-12


@dataclass(frozen=True)
class MaskTraining:
    """How a mask is learned; all values are ours.

    Attributes:
        steps: of one calibration batch each, in turn.
        learning_rate: of Adam on the logits. temperature: of the sigmoid. sparsity: weight of its term.
        seed: of the noise.
    """

    steps: int = 200
    learning_rate: float = 0.1
    temperature: float = 1.0
    sparsity: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if self.steps < 1:
            raise ConfigError(f"--mask-steps is {self.steps}; a learned mask takes 1 or more")


@dataclass
class LogitGroup:
    """The logits of one kind of unit, the groups in the first axis.

    Attributes:
        logits: float64 [G, n]. wanted: k of each group at the end.
    """

    logits: np.ndarray
    wanted: int
    _moment1: np.ndarray = field(init=False)
    _moment2: np.ndarray = field(init=False)

    def __post_init__(self):
        self._moment1, self._moment2 = np.zeros_like(self.logits), np.zeros((len(self.logits), 1))

    def count(self, progress: float) -> int:
        """How many stay when this share of the steps is done."""
        total = self.logits.shape[1]
        return self.wanted + round((total - self.wanted) * max(0.0, 1 - 2 * progress))

    def update(self, gradient: np.ndarray, step: int, learning_rate: float) -> None:
        """Adam; steps count from 1."""
        self._moment1 += (1 - BETAS[0]) * (gradient - self._moment1)
        self._moment2 += (1 - BETAS[1]) * ((gradient**2).mean(1, keepdims=True) - self._moment2)
        root = np.sqrt(self._moment2 / (1 - BETAS[1] ** step))
        self.logits -= learning_rate * self._moment1 / (1 - BETAS[0] ** step) / (root + EPSILON)


def hard_mask(u: np.ndarray, count: int) -> np.ndarray:
    """float32 [G, n]: 1 for the `count` largest numbers of each row, else 0."""
    mask = np.zeros(u.shape, np.float32)
    np.put_along_axis(mask, np.argsort(-u, axis=1, kind="stable")[:, :count], 1.0, axis=1)
    return mask


def logit_gradient(u: np.ndarray, dmask: np.ndarray, count: int, settings: MaskTraining) -> np.ndarray:
    """∂/∂a of loss + sparsity term, through the straight-through gates; float64 [G, n].

    Args:
        u: [G, n], logits with noise. dmask: the loss's derivative with respect to the hard mask.
        count: k of each group now.
    """
    p, total = 1 / (1 + np.exp(-u / settings.temperature)), u.shape[1]
    dsparsity = 2 * settings.sparsity * (p.mean(1, keepdims=True) - count / total) / total
    return (dmask + dsparsity) * p * (1 - p) / settings.temperature


def learned(
    loss: MaskedLoss,
    child: ModelConfig,
    layers: tuple[int, ...],
    settings: MaskTraining,
    progress: Callable[[Sequence], Iterable] = lambda items: items,
) -> Units:
    """The logits of all units after the training; float64.

    Args:
        child: its sizes are the k. layers: those that stay.
    """
    model, layers_L = loss.config.model, layer_mask(loss.config.model, layers)
    sizes, shapes = unit_shapes(child), unit_shapes(model)
    groups = {
        kind: LogitGroup(np.zeros((shape[0] if len(shape) == 2 else 1, shape[-1])), sizes[kind][-1])
        for kind, shape in shapes.items()
        if shape[-1] > sizes[kind][-1]
    }
    generator = np.random.default_rng(settings.seed)
    for step in progress(range(1, settings.steps + 1)):
        done = (step - 1) / settings.steps
        noisy = {
            kind: group.logits + (1 - done) * generator.logistic(size=group.logits.shape)
            for kind, group in groups.items()
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
