"""The mean loss of a masked model over calibration batches, and its derivatives with respect to the masks."""

from collections.abc import Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np

from mindpangu.config import Config
from mindpangu.data import Batch
from mindpangu.language_model import as_tensor
from mindpangu.model.coupling import Units
from mindpangu.model.decoder import Decoder
from mindpangu.model.vocabularies import Vocabularies
from mindpangu.tiny.inheritance.masked_decoder import MaskedDecoder, WeightedLoss

_FIRST_MASK, _MASKS = 6, 5


@dataclass(frozen=True)
class MaskGradients:
    """Derivatives of the mean loss with respect to the masks.

    Attributes:
        units: float64. layers: float64 [L].
    """

    units: Units
    layers: np.ndarray


class MaskedLoss:
    """Both are compiled once (for each vocabulary): masks are inputs.

    Attributes:
        config: the model's. batches: the calibration batches, of equal shapes.

    Args:
        decoder: dense. vocabularies: its vocabularies, with the domains that the batches number.
    """

    def __init__(self, config: Config, decoder: Decoder, vocabularies: Vocabularies, batches: Sequence[Batch]):
        self.config, self.batches, self._vocabularies = config, batches, vocabularies
        loss, decoder = WeightedLoss(decoder, config.model), MaskedDecoder(decoder, config.model)
        table = loss.head
        with_gradients = ms.value_and_grad(loss, tuple(range(_FIRST_MASK, _FIRST_MASK + _MASKS)), None)

        @ms.jit
        def value(vocabulary, *inputs):
            return loss(vocabulary, *inputs)

        @ms.jit
        def value_and_gradients(vocabulary, *inputs):
            return with_gradients(vocabulary, *inputs)

        @ms.jit
        def scores(vocabulary, rows_BS, positions_BS, vocabulary_of_sample_B, *masks):
            return table.logits(decoder(rows_BS, positions_BS, *masks), vocabulary, vocabulary_of_sample_B)

        self._value, self._value_and_gradients, self._scores = value, value_and_gradients, scores

    def loss(self, units: Units, layers_L: np.ndarray, batches: Sequence[Batch] | None = None) -> float:
        """Mean −log p of the targets that count.

        Args:
            units, layers_L: float32 masks, 0 to 1. batches: some of the calibration batches; None for all of them.
        """
        batches = self.batches if batches is None else batches
        total = sum(float(self._value(*self._inputs(batch), *_tensors(units, layers_L)).asnumpy()) for batch in batches)
        return total / _targets(batches)

    def gradients(
        self, units: Units, layers_L: np.ndarray, batches: Sequence[Batch] | None = None
    ) -> tuple[float, MaskGradients]:
        """The loss, and its derivatives with respect to every mask. Arguments as for `loss`."""
        batches, masks = self.batches if batches is None else batches, _tensors(units, layers_L)
        total, sums = 0.0, [np.zeros(mask.shape) for mask in masks]
        for batch in batches:
            value, gradients = self._value_and_gradients(*self._inputs(batch), *masks)
            total += float(value.asnumpy())
            for sum_so_far, gradient in zip(sums, gradients, strict=True):
                sum_so_far += gradient.asnumpy()
        targets = _targets(batches)
        *of_units, of_layers = (each / targets for each in sums)
        return total / targets, MaskGradients(Units(*of_units), of_layers)

    def logits(self, units: Units, layers_L: np.ndarray, batch: Batch) -> np.ndarray:
        """float32 [T, V]: the masked model's scores of the next token."""
        vocabulary, rows_BS, positions_BS, _, _, vocabulary_of_sample_B = self._inputs(batch)
        masks = _tensors(units, layers_L)
        return self._scores(vocabulary, rows_BS, positions_BS, vocabulary_of_sample_B, *masks).asnumpy()

    def _inputs(self, batch: Batch) -> tuple:
        vocabulary_of_sample_B = self._vocabularies.of_samples(batch.domain_of_slot, batch.slot_of_sample_B)
        rows_BS = self._vocabularies.rows(batch.tokens_BS, vocabulary_of_sample_B)
        arrays = (rows_BS, batch.positions_BS, batch.targets_BS, batch.loss_mask_BS, vocabulary_of_sample_B)
        return (self._vocabularies.common(vocabulary_of_sample_B), *map(as_tensor, arrays))


def _tensors(units: Units, layers_L: np.ndarray) -> tuple:
    masks = [mask.astype(np.float32) for mask in (*(mask for _, mask in units.items()), layers_L)]
    # a model without a shortcut has no bottleneck: its mask is a number that nothing uses, as no tensor is empty
    return tuple(as_tensor(mask if mask.size else np.zeros((len(layers_L), 1), np.float32)) for mask in masks)


def _targets(batches: Sequence[Batch]) -> float:
    return sum(float(batch.loss_mask_BS.sum()) for batch in batches)
