"""How important the channels, heads and neurons of a model are: by their weights, by derivatives, or by rng.

The measures of "Rethinking Optimization and Architecture for Tiny Language Models" (arXiv 2402.02791) but for the
learned one (`learned_mask.py`). The paper prints L1 = Σ|w|, L2 = √Σw², Taylor = |w · ∂L/∂w| of a unit's weights, and
not which weights are one unit's; `mindpangu.model.coupling` says what is ours.
"""

from collections.abc import Mapping

import numpy as np

from mindpangu.config import ModelConfig
from mindpangu.errors import ConfigError
from mindpangu.model.coupling import Units, place_of, sums_over_units, unit_shapes
from mindpangu.tiny.inheritance.masked_loss import MaskedLoss

L1, L2, TAYLOR, LEARNED, RANDOM = METHODS = ("l1", "l2", "taylor", "learned", "random")


def l1(model: ModelConfig, weights: Mapping[str, np.ndarray], layers: tuple[int, ...]) -> Units:
    """Σ|w| over all matrices, biases and embeddings that have the unit; float64.

    Not of norms and series, whose entries are factors of weights.

    Args:
        weights: dense parameters by name. layers: those that stay; others' weights do not count.
    """
    return sums_over_units(model, {name: abs(values) for name, values in _counted(model, weights, layers).items()})


def l2(model: ModelConfig, weights: Mapping[str, np.ndarray], layers: tuple[int, ...]) -> Units:
    """√Σw² over the same weights as `l1`; float64."""
    squares = {name: np.square(values, dtype=np.float64) for name, values in _counted(model, weights, layers).items()}
    return Units(**{kind: np.sqrt(total) for kind, total in sums_over_units(model, squares).items()})


def taylor(loss: MaskedLoss, layers: tuple[int, ...]) -> Units:
    """|Σ w · ∂L/∂w| over the weights of one side of a unit, L being the mean loss of all calibration batches; float64.

    Of the usual forms (Molchanov et al., arXiv 1906.10771) the gate's: |∂L/∂m| of a mask m at 1, the first-order change
    of the loss when the unit goes. With w the rows of the matrix that a head or a neuron goes into, or of all the
    matrices that read a channel, it is that sum exactly; the weights in front of the gate would count the same change
    again. A channel's has the change of the norms' means as well. The absolute value is taken of the sum, as the
    changes of a unit's weights cancel where it goes as a whole.
    """
    _, gradients = loss.gradients(Units.full(loss.config.model), layer_mask(loss.config.model, layers))
    return Units(**{kind: abs(values) for kind, values in gradients.units.items()})


def random(model: ModelConfig, seed: int) -> Units:
    """Equally distributed, to compare with."""
    generator = np.random.default_rng(seed)
    return Units(**{kind: generator.random(shape) for kind, shape in unit_shapes(model).items()})


def layer_mask(model: ModelConfig, layers: tuple[int, ...]) -> np.ndarray:
    """float32 [L]: 1 for these layers, else 0."""
    mask_L = np.zeros(model.num_layers, np.float32)
    mask_L[list(layers)] = 1
    return mask_L


def largest(importance: Units, child: ModelConfig) -> Units:
    """int64: the numbers of the most important units, ascending, as many as the child has; of equal ones the first."""
    sizes = {kind: shape[-1] for kind, shape in unit_shapes(child).items()}

    def numbers(values: np.ndarray, size: int) -> np.ndarray:
        return np.sort(np.argsort(-values, axis=-1, kind="stable")[..., :size], axis=-1)

    return Units(**{kind: numbers(values, sizes[kind]) for kind, values in importance.items()})


def require_method(method: str) -> None:
    """Raises ConfigError for a method that is none of METHODS."""
    if method not in METHODS:
        raise ConfigError(f"--neurons is {method!r}; choose one of {', '.join(METHODS)}")


def _counted(model: ModelConfig, weights: Mapping[str, np.ndarray], layers: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {
        name: values
        for name, values in weights.items()
        if not name.endswith((".gamma", ".beta", ".scale", ".shift")) and place_of(model, name)[0] in (None, *layers)
    }
