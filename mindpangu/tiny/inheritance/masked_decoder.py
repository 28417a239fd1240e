"""A dense decoder with masks as inputs: what it computes without some of its layers, channels, heads and neurons.

Nothing here has weights of its own: `MaskedDecoder` goes through the blocks of a `Decoder`. Every unit has one gate:

    channel      where the residual stream is read: behind the norms of attention and feed-forward network, in front of
                 the head, and in the learned queries. Norms take mean and variance over the channels that are kept,
                 weighted by their mask
    head, neuron, bottleneck neuron
                 in front of the matrix that takes it back to the residual stream
    layer        on what its attention and its feed-forward network add to the stream: without them it is unchanged

What stands in the stream where nobody reads it does not matter, so a model whose masks are 0 and 1 is the pruned one
(`mindpangu.lifecycle.prune`). And as a path goes through the gate of a unit once, the derivative with respect to a mask
at 1 is the first-order change of the loss that comes with the unit (`importance.py`).

Shapes as in `mindpangu.model.coupling`.
"""

from mindspore import nn, ops

from mindpangu.model.decoder import Decoder


class MaskedNorm(nn.Cell):
    """A norm over the channels that are kept, of all channels."""

    def __init__(self, norm: nn.Cell, model):
        super().__init__(auto_prefix=False)
        self.gamma, self.epsilon = norm.gamma, model.layernorm_epsilon
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
    """A layer of which some heads, neurons and bottleneck neurons are masked, or all of it."""

    def __init__(self, block: nn.Cell, model):
        super().__init__(auto_prefix=False)
        self.attention_norm = MaskedNorm(block.attention_norm, model)
        self.ffn_norm = MaskedNorm(block.ffn_norm, model)
        self.attention, self.shortcut, self.ffn = block.attention, block.shortcut, block.ffn

    def construct(self, x_TH, positions_BS, query_TH, channels_H, heads_N, neurons_F, bottleneck_M, layer):
        """`query_TH`: of the query layer, already masked; else None. `layer`: the mask of all of it, a scalar."""
        h_TH = self.attention_norm(x_TH, channels_H) * channels_H
        queries_TH = h_TH if query_TH is None else query_TH
        key, value = self.attention.keys_and_values(h_TH, positions_BS)
        unseen = self.attention.mask(positions_BS)
        heads_TH = self.attention.heads(queries_TH, key, value, unseen, positions_BS)
        heads_TH = heads_TH * ops.repeat_elements(heads_N, self.attention.head_size, 0)
        added_TH = self.attention.output(heads_TH)
        if self.shortcut is not None:
            added_TH = added_TH + self.shortcut.up(self.shortcut.bottleneck(h_TH) * bottleneck_M)
        x_TH = x_TH + layer * added_TH
        h_TH = self.ffn_norm(x_TH, channels_H) * channels_H
        return x_TH + layer * self.ffn.down(self.ffn.neurons(h_TH) * neurons_F)


class MaskedDecoder(nn.Cell):
    """A decoder's blocks with gates, and its embedding as it is.

    Args:
        decoder: dense, of this process alone, computing in fp32.
        model: its section of the configuration.
    """

    def __init__(self, decoder: Decoder, model):
        super().__init__(auto_prefix=False)
        self.lower, self.upper = decoder.lower, decoder.upper
        self.blocks = nn.CellList([MaskedBlock(block, model) for block in decoder.layers], auto_prefix=False)
        self.final_norm = MaskedNorm(self.upper.final_norm, model)
        self.query_layer = model.query_layer

    def construct(self, rows_BS, positions_BS, channels_H, heads_LN, neurons_LF, bottleneck_LM, layers_L):
        """float32 [T, H], masked, from which the head predicts the next token.

        Args:
            rows_BS: int32, rows of the embedding table.
        """
        x_TH, query_TH = self.lower.embed(rows_BS, positions_BS), None
        top = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            if self.query_layer and i == top:
                x_TH = self.final_norm(x_TH, channels_H)
                query_TH = self.upper.queries(positions_BS) * channels_H
            x_TH = block(
                x_TH, positions_BS, query_TH, channels_H, heads_LN[i], neurons_LF[i], bottleneck_LM[i], layers_L[i]
            )
        if not self.query_layer:
            x_TH = self.final_norm(x_TH, channels_H)
        return x_TH * channels_H


class WeightedLoss(nn.Cell):
    """Σ weight · −log p of the targets, a function of the masks."""

    def __init__(self, decoder: Decoder, model):
        super().__init__(auto_prefix=False)
        self.masked, self.head = MaskedDecoder(decoder, model), decoder.upper.head

    def construct(self, vocabulary, rows_BS, positions_BS, targets_BS, weights_BS, vocabulary_of_sample_B, *masks):
        x_TH = self.masked(rows_BS, positions_BS, *masks)
        return (self.head.token_losses(x_TH, targets_BS, vocabulary, vocabulary_of_sample_B) * weights_BS).sum()
