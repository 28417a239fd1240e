"""Importance of a model's channels, heads and neurons: by their weights, by gradients, or at random.

These are the measures of "Rethinking Optimization and Architecture for Tiny Language Models" (arXiv 2402.02791), except
the learned one (`learned_mask.py`). The paper defines L1 = Σ|w|, L2 = √Σw² and Taylor = |w · ∂L/∂w| over a unit's
weights, but not which weights belong to a unit; that choice is ours (`mindpangu.model.coupling`).
"""

from collections.abc import Mapping

import numpy as np

from mindpangu.config import ModelConfig
from mindpangu.errors import ConfigError
from mindpangu.model.coupling import Units, layer_and_units, sums_over_units, unit_shapes
from mindpangu.tiny.inheritance.masked_loss import MaskedLoss

L1, L2, TAYLOR, LEARNED, RANDOM = METHODS = ("l1", "l2", "taylor", "learned", "random")


def l1(model: ModelConfig, weights: Mapping[str, np.ndarray], layers: tuple[int, ...]) -> Units:
    """Returns Σ|w| over the unit's entries in all matrices, biases and embeddings; float64.

    Norms and series activations do not count, because their entries scale weights.

    Args:
        weights: dense parameters by name.
        layers: the layers that are kept; the weights of other layers do not count.
    """
    return sums_over_units(model, {name: abs(values) for name, values in _counted(model, weights, layers).items()})


def l2(model: ModelConfig, weights: Mapping[str, np.ndarray], layers: tuple[int, ...]) -> Units:
    """Returns √Σw² over the same weights as `l1`; float64."""
    squares = {name: np.square(values, dtype=np.float64) for name, values in _counted(model, weights, layers).items()}
    return Units(**{kind: np.sqrt(total) for kind, total in sums_over_units(model, squares).items()})


def taylor(loss: MaskedLoss, layers: tuple[int, ...]) -> Units:
    """Returns |Σ w · ∂L/∂w| over the weights behind a unit's gate, where L is the mean calibration loss; float64.

    This is the gate form of the criterion (Molchanov et al., arXiv 1906.10771): |∂L/∂m| of a mask m at 1, the
    first-order change of the loss when the unit is removed. It equals the sum if w are the rows of the matrix that
    reads a head or a neuron, or of all matrices that read a channel; the weights in front of the gate would count the
    same change twice. For a channel it also includes the change of the norms' means. The absolute value is taken of the
    sum, because the changes of a unit's weights cancel when the unit is removed as a whole.
    """
    _, gradients = loss.gradients(Units.full(loss.config.model), layer_mask(loss.config.model, layers))
    return Units(**{kind: abs(values) for kind, values in gradients.units.items()})


def random(model: ModelConfig, seed: int) -> Units:
    """Returns uniform random importances, as a baseline."""
    rng = np.random.default_rng(seed)
    return Units(**{kind: rng.random(shape) for kind, shape in unit_shapes(model).items()})


def layer_mask(model: ModelConfig, layers: tuple[int, ...]) -> np.ndarray:
    """Returns float32 [L]: 1 for these layers, else 0."""
    mask_L = np.zeros(model.num_layers, np.float32)
    mask_L[list(layers)] = 1
    return mask_L


def largest(importance: Units, child: ModelConfig) -> Units:
    """Returns the indices of the most important units, ascending, as many as the child has; int64.

    Of equally important units, those with the lower indices are kept.
    """
    sizes = {kind: shape[-1] for kind, shape in unit_shapes(child).items()}

    def largest_indices(values: np.ndarray, size: int) -> np.ndarray:
        return np.sort(np.argsort(-values, axis=-1, kind="stable")[..., :size], axis=-1)

    return Units(**{kind: largest_indices(values, sizes[kind]) for kind, values in importance.items()})


def require_method(method: str) -> None:
    """Raises ConfigError if the method is not one of METHODS."""
    if method not in METHODS:
        raise ConfigError(f"--neurons is {method!r}; choose one of {', '.join(METHODS)}")


def _counted(model: ModelConfig, weights: Mapping[str, np.ndarray], layers: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {
        name: values
        for name, values in weights.items()
        if not name.endswith((".gamma", ".beta", ".scale", ".shift"))
        and layer_and_units(model, name)[0] in (None, *layers)
    }
