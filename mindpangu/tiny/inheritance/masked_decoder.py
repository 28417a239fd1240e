"""A dense decoder with masks as inputs, which computes the model without some layers, channels, heads or neurons.

The cells here have no weights of their own: `MaskedDecoder` uses the blocks of a `Decoder`. Every unit has one gate:

    channel      where the residual stream is read: after the norms of attention and feed-forward network, before the
                 output head, and in the learned queries. Norms take mean and variance over the kept channels, weighted
                 by their mask
    head, neuron, bottleneck neuron
                 before the matrix that projects it back to the residual stream
    layer        on what its attention and its feed-forward network add to the stream; a masked layer adds nothing

Masked channels of the stream are never read, so a model whose masks are 0 and 1 equals the pruned model
(`mindpangu.lifecycle.prune`). Every path passes the gate of a unit once, so the gradient with respect to a mask at 1 is
the first-order change of the loss when the unit is removed (`importance.py`).

The shapes are those of `mindpangu.model.coupling`.
"""

from mindspore import nn, ops

from mindpangu.config import ModelConfig
from mindpangu.model.decoder import Decoder


class MaskedNorm(nn.Cell):
    """A norm whose mean and variance run over the kept channels only."""

    def __init__(self, norm: nn.Cell, model: ModelConfig):
        super().__init__(auto_prefix=False)
        self.gamma = norm.gamma
        self.epsilon = model.layernorm_epsilon
        self.is_centred = model.norm == "layernorm"
        if self.is_centred:
            self.beta = norm.beta

    def construct(self, x_TH, channels_H):
        share_H = channels_H / channels_H.sum()
        if not self.is_centred:
            mean_T1 = (x_TH * x_TH * share_H).sum(1, keepdims=True)
            return x_TH * ops.rsqrt(mean_T1 + self.epsilon) * self.gamma
        centred_TH = x_TH - (x_TH * share_H).sum(1, keepdims=True)
        variance_T1 = (centred_TH * centred_TH * share_H).sum(1, keepdims=True)
        return centred_TH * ops.rsqrt(variance_T1 + self.epsilon) * self.gamma + self.beta


class MaskedBlock(nn.Cell):
    """A layer with masks on its heads, neurons and bottleneck neurons, and on the layer itself."""

    def __init__(self, block: nn.Cell, model: ModelConfig):
        super().__init__(auto_prefix=False)
        self.attention_norm = MaskedNorm(block.attention_norm, model)
        self.ffn_norm = MaskedNorm(block.ffn_norm, model)
        self.attention = block.attention
        self.shortcut = block.shortcut
        self.ffn = block.ffn

    def construct(self, x_TH, positions_BS, query_TH, channels_H, heads_N, neurons_F, bottleneck_mask, layer):
        """`query_TH`: masked queries of the query layer; else None. `layer`: mask of the layer, a scalar."""
        h_TH = self.attention_norm(x_TH, channels_H) * channels_H
        heads_TH = self.attention.heads(*self.attention.projections(h_TH, query_TH), positions_BS)
        heads_TH = heads_TH * ops.repeat_elements(heads_N, self.attention.head_size, 0)
        added_TH = self.attention.output(heads_TH)
        if self.shortcut is not None:
            added_TH = added_TH + self.shortcut.up(self.shortcut.bottleneck(h_TH) * bottleneck_mask)
        x_TH = x_TH + layer * added_TH
        h_TH = self.ffn_norm(x_TH, channels_H) * channels_H
        return x_TH + layer * self.ffn.down(self.ffn.neurons(h_TH) * neurons_F)


class MaskedDecoder(nn.Cell):
    """The blocks of a decoder with gates; the embedding is unchanged.

    Args:
        decoder: a dense decoder of a single process, computing in fp32.
        model: model section of its configuration.
    """

    def __init__(self, decoder: Decoder, model: ModelConfig):
        super().__init__(auto_prefix=False)
        self.lower = decoder.lower
        self.upper = decoder.upper
        self.blocks = nn.CellList([MaskedBlock(block, model) for block in decoder.layers], auto_prefix=False)
        self.final_norm = MaskedNorm(self.upper.final_norm, model)
        self.query_layer = model.query_layer

    def construct(self, rows_BS, positions_BS, channels_H, heads_LN, neurons_LF, bottlenecks, layers_L):
        """Returns the masked hidden states before the output head, float32 [T, H].

        Args:
            rows_BS: int32, rows of the embedding table.
        """
        x_TH = self.lower.embed(rows_BS, positions_BS)
        query_TH = None
        top = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            if self.query_layer and i == top:
                x_TH = self.final_norm(x_TH, channels_H)
                query_TH = self.upper.queries(positions_BS) * channels_H
            x_TH = block(
                x_TH, positions_BS, query_TH, channels_H, heads_LN[i], neurons_LF[i], bottlenecks[i], layers_L[i]
            )
        if not self.query_layer:
            x_TH = self.final_norm(x_TH, channels_H)
        return x_TH * channels_H


class WeightedLoss(nn.Cell):
    """Σ weight · −log p of the targets, as a function of the masks."""

    def __init__(self, decoder: Decoder, model: ModelConfig):
        super().__init__(auto_prefix=False)
        self.masked = MaskedDecoder(decoder, model)
        self.head = decoder.upper.head

    def construct(self, vocabulary, rows_BS, positions_BS, targets_BS, weights_BS, vocabulary_of_sample_B, *masks):
        x_TH = self.masked(rows_BS, positions_BS, *masks)
        return (self.head.token_losses(x_TH, targets_BS, vocabulary, vocabulary_of_sample_B) * weights_BS).sum()
