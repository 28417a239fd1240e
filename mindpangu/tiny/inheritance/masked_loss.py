"""The mean loss of a masked model over calibration batches, and its gradients with respect to the masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np

from mindpangu.config import Config
from mindpangu.data import Batch
from mindpangu.language_model import as_tensor
from mindpangu.model.coupling import Units
from mindpangu.model.decoder import Decoder
from mindpangu.model.vocabularies import Vocabularies
from mindpangu.tiny.inheritance.masked_decoder import MaskedDecoder, WeightedLoss

# positions of the masks among the inputs of the compiled loss
_FIRST_MASK = 6
_NUM_MASKS = 5


@dataclass(frozen=True)
class MaskGradients:
    """Gradients of the mean loss with respect to the masks.

    Attributes:
        units: float64, gradients for all units.
        layers: float64 [L], gradients for the layers.
    """

    units: Units
    layers: np.ndarray


class MaskedLoss:
    """Loss, gradients and logits of a masked model. Each compiles once per vocabulary, because masks are inputs.

    Attributes:
        config: configuration of the model.
        batches: the calibration batches, of equal shapes.

    Args:
        decoder: a dense decoder.
        vocabularies: the decoder's vocabularies, for the domains that the batches refer to.
    """

    def __init__(self, config: Config, decoder: Decoder, vocabularies: Vocabularies, batches: Sequence[Batch]):
        self.config = config
        self.batches = batches
        self._vocabularies = vocabularies
        loss = WeightedLoss(decoder, config.model)
        masked_decoder = MaskedDecoder(decoder, config.model)
        head = loss.head
        with_gradients = ms.value_and_grad(loss, tuple(range(_FIRST_MASK, _FIRST_MASK + _NUM_MASKS)), None)

        @ms.jit
        def value(vocabulary, *inputs):
            return loss(vocabulary, *inputs)

        @ms.jit
        def value_and_gradients(vocabulary, *inputs):
            return with_gradients(vocabulary, *inputs)

        @ms.jit
        def scores(vocabulary, rows_BS, positions_BS, vocabulary_of_sample_B, *masks):
            return head.logits(masked_decoder(rows_BS, positions_BS, *masks), vocabulary, vocabulary_of_sample_B)

        self._value = value
        self._value_and_gradients = value_and_gradients
        self._scores = scores

    def loss(self, units: Units, layers_L: np.ndarray, batches: Sequence[Batch] | None = None) -> float:
        """Returns the mean −log p of the targets that the loss mask counts.

        Args:
            units, layers_L: masks from 0 to 1, float32.
            batches: some of the calibration batches; None for all of them.
        """
        batches = self.batches if batches is None else batches
        total = sum(float(self._value(*self._inputs(batch), *_tensors(units, layers_L)).asnumpy()) for batch in batches)
        return total / _targets(batches)

    def gradients(
        self, units: Units, layers_L: np.ndarray, batches: Sequence[Batch] | None = None
    ) -> tuple[float, MaskGradients]:
        """Returns the loss and its gradients with respect to every mask. The arguments are those of `loss`."""
        batches = self.batches if batches is None else batches
        masks = _tensors(units, layers_L)
        total = 0.0
        sums = [np.zeros(mask.shape) for mask in masks]
        for batch in batches:
            value, gradients = self._value_and_gradients(*self._inputs(batch), *masks)
            total += float(value.asnumpy())
            for sum_so_far, gradient in zip(sums, gradients, strict=True):
                sum_so_far += gradient.asnumpy()
        targets = _targets(batches)
        *unit_gradients, layer_gradients = (each / targets for each in sums)
        return total / targets, MaskGradients(Units(*unit_gradients), layer_gradients)

    def logits(self, units: Units, layers_L: np.ndarray, batch: Batch) -> np.ndarray:
        """Returns the masked model's logits of the next token, float32 [T, V]."""
        vocabulary, rows_BS, positions_BS, _, _, vocabulary_of_sample_B = self._inputs(batch)
        masks = _tensors(units, layers_L)
        return self._scores(vocabulary, rows_BS, positions_BS, vocabulary_of_sample_B, *masks).asnumpy()

    def _inputs(self, batch: Batch) -> tuple[Any, ...]:
        vocabulary_of_sample_B = self._vocabularies.of_samples(batch.domain_of_slot, batch.slot_of_sample_B)
        rows_BS = self._vocabularies.rows(batch.tokens_BS, vocabulary_of_sample_B)
        arrays = (rows_BS, batch.positions_BS, batch.targets_BS, batch.loss_mask_BS, vocabulary_of_sample_B)
        return (self._vocabularies.common(vocabulary_of_sample_B), *map(as_tensor, arrays))


def _tensors(units: Units, layers_L: np.ndarray) -> tuple[ms.Tensor, ...]:
    masks = [mask.astype(np.float32) for mask in (*(mask for _, mask in units.items()), layers_L)]
    # a model without a shortcut has no bottleneck; MindSpore has no empty tensors, so its unused mask has one column
    return tuple(as_tensor(mask if mask.size else np.zeros((len(layers_L), 1), np.float32)) for mask in masks)


def _targets(batches: Sequence[Batch]) -> float:
    return sum(float(batch.loss_mask_BS.sum()) for batch in batches)
