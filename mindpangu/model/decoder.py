"""The PanGu decoder, in the two halves that the training step compiles separately.

    Lower: embedding → dense blocks → h
    Upper: h → RRE blocks → final norm → query layer (routed as well) → head → loss

PanGu-Σ has both; a dense PanGu-α (rre_layers 0) has all its blocks in Lower and a dense query layer in Upper.
The final LayerNorm comes *before* the query layer, and nothing follows it, as in PanGu-α's published checkpoints
(its pipeline-parallel code has the other order). PanGu-π has no query layer (model.query_layer false): its last layer
is an ordinary block, and the final norm comes before the head. Experts are inputs, never Parameters: see `experts`.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ascend_ops.grouped_all_to_all import Group, first_order
from mindpangu.config import Config
from mindpangu.model.attention import Attention, AugmentedShortcut
from mindpangu.model.embedding import Head, WordEmbedding
from mindpangu.model.initialization import output_std
from mindpangu.model.layers import FeedForward, Init, make_norm
from mindpangu.model.precision import cast
from mindpangu.model.routed_experts import RoutedExperts
from mindpangu.model.vocabularies import Vocabularies
from mindpangu.parallel.collectives import TensorGroup


class Block(nn.Cell):
    """Base class of dense and RRE blocks: pre-norm attention, the optional shortcut, and the norm before the FFN.

    `query_TH` replaces the input of the attention's queries; the query layer passes its learned queries.

    Args:
        layer: index of the layer, counted from 0.
    """

    def __init__(self, init: Init, name: str, layer: int):
        super().__init__(auto_prefix=False)
        model = init.config.model
        self.output_std = output_std(model, layer)
        self.attention_norm = make_norm(init, f"{name}.attention_norm")
        self.attention = Attention(init, f"{name}.attention", self.output_std)
        self.shortcut = None
        if model.shortcut_reduction:
            self.shortcut = AugmentedShortcut(init, f"{name}.shortcut", self.output_std)
        self.ffn_norm = make_norm(init, f"{name}.ffn_norm")
        self.tensor = init.tensor

    def mark_recompute(self) -> None:
        """Recomputes this block's activations in the backward pass. Marks its Cells one by one: if the whole block is
        marked, MindSpore reports that the graph of tensor parallelism in fp16 is circular."""
        for cell in (self.attention_norm, self.attention, self.shortcut, self.ffn_norm):
            if cell is not None:
                cell.recompute()

    def attend(self, x_TH, addend_TH, positions_BS, query_TH):
        """Returns the residual stream after attention, and the input of the feed-forward network."""
        x_TH, h_TH, query_TH = self.attention_inputs(x_TH, addend_TH, query_TH)
        return self.ffn_norm(x_TH, self.attention(h_TH, positions_BS, query_TH))

    def attention_inputs(self, x_TH, addend_TH, query_TH):
        """Returns the residual stream that attention is added to, its norm, and the learned queries or None.

        Args:
            addend_TH: output of the layer before, which is not yet added to the residual stream; None for none.
        """
        if addend_TH is None:
            norm_TH = self.attention_norm(x_TH)
        else:
            x_TH, norm_TH = self.attention_norm(x_TH, addend_TH)
        if self.shortcut is not None:
            x_TH = x_TH + self.shortcut(norm_TH)
        return x_TH, self.tensor.copy_to(norm_TH), None if query_TH is None else self.tensor.copy_to(query_TH)


class DenseBlock(Block):
    """A block with a dense feed-forward network."""

    def __init__(self, init: Init, name: str, layer: int):
        super().__init__(init, name, layer)
        self.ffn = FeedForward(init, f"{name}.ffn", self.output_std)

    def mark_recompute(self) -> None:
        super().mark_recompute()
        self.ffn.recompute()

    def construct(self, x_TH, addend_TH, positions_BS, query_TH=None):
        """Returns the residual stream after attention, and the feed-forward output, which the next norm adds to it."""
        x_TH, h_TH = self.attend(x_TH, addend_TH, positions_BS, query_TH)
        return x_TH, self.ffn(h_TH)

    def feed_cached(self, x_TH, h_TH, entries_T, slabs):
        """Does what `RREBlock.feed_cached` does, without experts: the query layer may be a block of either kind."""
        return x_TH + self.ffn(h_TH)


class RREBlock(Block):
    """A block whose feed-forward network is routed; see `routed_experts`."""

    def __init__(self, init: Init, name: str, layer: int, exchange: Group | None):
        super().__init__(init, name, layer)
        self.experts = RoutedExperts(init, exchange)

    def construct(self, x_TH, positions_BS, routing, slabs, order, query_TH=None):
        """Returns (x_TH, invalid, order); for `routing`, `invalid` and `order` see `token_dispatcher`."""
        x_TH, h_TH = self.attend(x_TH, None, positions_BS, query_TH)
        return self.experts(x_TH, h_TH, routing, slabs, order)

    def feed_cached(self, x_TH, h_TH, entries_T, slabs):
        """Sends token t to expert entries_T[t] of a pool: token ids are 0, 1, 2, …, and the entries are the table."""
        tokens_T = ops.cast(ops.arange(entries_T.shape[0]), ms.int32)
        slot_ids_T = ops.zeros_like(tokens_T)
        routing = (tokens_T, slot_ids_T, ops.expand_dims(entries_T, 0), slabs[0].shape[0], 0, ())
        # the host has just made this table for these tokens, so no token can be outside it
        return self.experts(x_TH, h_TH, routing, slabs, first_order())[0]


class Lower(nn.Cell):
    """Embedding and dense blocks."""

    def __init__(self, init: Init, word_embedding: WordEmbedding, num_blocks: int):
        super().__init__(auto_prefix=False)
        model = init.config.model
        self.word_embedding = word_embedding
        self.compute_dtype = init.compute_dtype
        self.position_embedding = None
        if model.position == "learned":
            self.position_embedding = init.weight("position_embedding", model.seq_length, model.hidden_size)
        self.blocks = nn.CellList([DenseBlock(init, f"blocks.{i}", i) for i in range(num_blocks)], auto_prefix=False)

    def construct(self, rows_BS, positions_BS):
        """Returns h_TH for int32 rows of the embedding table."""
        x_TH, addend_TH = self._embeddings(rows_BS, positions_BS)
        for block in self.blocks:
            x_TH, addend_TH = block(x_TH, addend_TH, positions_BS)
        return x_TH if addend_TH is None else x_TH + addend_TH

    def embed(self, rows_BS, positions_BS):
        """Returns the sum of word and position embeddings, x_TH."""
        x_TH, addend_TH = self._embeddings(rows_BS, positions_BS)
        return x_TH if addend_TH is None else x_TH + addend_TH

    def _embeddings(self, rows_BS, positions_BS):
        """Returns word and position embeddings, which the first norm adds.

        In half precision, returns their sum, which is rounded only once, and None.
        """
        words_BSH = self.word_embedding(rows_BS)
        hidden = words_BSH.shape[2]
        if self.position_embedding is None:
            return cast(words_BSH, self.compute_dtype).reshape((-1, hidden)), None
        places_BSH = ops.gather(self.position_embedding, positions_BS, 0)
        if self.compute_dtype == ms.float32:
            return words_BSH.reshape((-1, hidden)), places_BSH.reshape((-1, hidden))
        return cast(words_BSH + places_BSH, self.compute_dtype).reshape((-1, hidden)), None


class Upper(nn.Cell):
    """RRE blocks, final norm, query layer and head."""

    def __init__(self, init: Init, vocabularies: Vocabularies, word_embedding: WordEmbedding, exchange: Group | None):
        super().__init__(auto_prefix=False)
        model = init.config.model
        self.head = Head(init, vocabularies, word_embedding)
        self.rre_layers = model.rre_layers
        self.compute_dtype = init.compute_dtype
        first = model.num_layers - model.rre_layers
        last = model.num_layers - 1
        routed = range(first, last if model.query_layer else model.num_layers)
        blocks = [RREBlock(init, f"blocks.{i}", i, exchange) for i in routed]
        self.blocks = nn.CellList(blocks, auto_prefix=False)
        self.final_norm = make_norm(init, "final_norm")
        self.query_layer = None
        self.query_embedding = None
        if model.query_layer:
            self.query_embedding = init.weight("query_embedding", model.seq_length, model.hidden_size)
            if model.rre_layers:
                self.query_layer = RREBlock(init, "query_layer", last, exchange)
            else:
                self.query_layer = DenseBlock(init, "query_layer", last)
        self.none_invalid = Tensor(np.zeros(1, np.int32))

    def construct(self, h_TH, positions_BS, routing, slabs):
        """Runs the upper half on h_TH.

        Args:
            routing: (tokens_BS, domain_slots_B, tables_LDV, capacity, counts): int32 [B, S] token ids, int32 [B] the
                domain slot of each sample, which selects the tables and slabs of its tokens, and int32 [L, D, V]
                tables. Capacity and counts are those of `token_dispatcher`, the counts with a leading axis L. () for a
                dense model.
            slabs: the experts' tensors, layer by layer; () for a dense model.

        Returns:
            x_TH, from which the head predicts the next token.
            invalid: int32 [1], number of tokens with an id outside the table, summed over the layers.
        """
        if self.rre_layers == 0:
            x_TH = self.final_norm(h_TH)
            if self.query_layer is not None:
                x_TH, addend_TH = self.query_layer(x_TH, None, positions_BS, self.queries(positions_BS))
                x_TH = x_TH + addend_TH
            return x_TH, self.none_invalid
        tokens_BS, domain_slots_B, tables_LDV, capacity, counts = routing
        slot_ids_T = ops.repeat_elements(domain_slots_B, tokens_BS.shape[1], 0)
        routing = (tokens_BS.reshape((-1,)), slot_ids_T, tables_LDV, capacity, counts)
        invalid = self.none_invalid
        order = first_order()
        for i, block in enumerate(self.blocks):
            layer_routing, layer_slabs = self._layer_inputs(i, routing, slabs)
            h_TH, invalid_here, order = block(h_TH, positions_BS, layer_routing, layer_slabs, order)
            invalid = invalid + invalid_here
        x_TH = self.final_norm(h_TH)
        if self.query_layer is None:
            return x_TH, invalid
        top = self.rre_layers - 1
        layer_routing, layer_slabs = self._layer_inputs(top, routing, slabs)
        query_TH = self.queries(positions_BS)
        x_TH, invalid_here, _ = self.query_layer(x_TH, positions_BS, layer_routing, layer_slabs, order, query_TH)
        return x_TH, invalid + invalid_here

    def _layer_inputs(self, layer, routing, slabs):
        """Returns the routing and the slabs of one RRE layer."""
        tokens_T, slot_ids_T, tables_LDV, capacity, counts = routing
        per_layer = len(slabs) // self.rre_layers
        layer_slabs = slabs[layer * per_layer : (layer + 1) * per_layer]
        layer_counts = ()
        for each in counts:
            layer_counts += (each[layer],)
        num_experts = layer_slabs[0].shape[0]
        return (tokens_T, slot_ids_T, tables_LDV[layer], num_experts, capacity, layer_counts), layer_slabs

    def queries(self, positions_BS):
        """Returns the learned queries of the query layer."""
        query_TH = ops.gather(self.query_embedding, positions_BS.reshape((-1,)), 0)
        return cast(query_TH, self.compute_dtype)

    def logits(self, x_TH, vocabulary, vocabulary_of_sample_B):
        """See `Head.logits`."""
        return self.head.logits(x_TH, vocabulary, vocabulary_of_sample_B)

    def token_losses(self, x_TH, targets_BS, vocabulary, vocabulary_of_sample_B):
        """See `Head.token_losses`."""
        return self.head.token_losses(x_TH, targets_BS, vocabulary, vocabulary_of_sample_B)

    def weighted_losses(self, x_TH, targets_BS, weights_BS, vocabulary, vocabulary_of_sample_B):
        """See `Head.weighted_losses`."""
        return self.head.weighted_losses(x_TH, targets_BS, weights_BS, vocabulary, vocabulary_of_sample_B)


class Decoder:
    """The two halves of the model, and their parameters by name.

    Attributes:
        lower, upper: the Cells. A tied word embedding is one Parameter that both hold.
        vocabularies: the vocabularies.
        parameters: name → Parameter, in a fixed order.
        slices: name → this rank's slice of the tensor.

    Args:
        tensor: the ranks that share the matrices; None if this rank holds all of them.
        exchange: the ranks that share the experts; None if this rank holds all of them.
    """

    def __init__(
        self,
        config: Config,
        vocabularies: Vocabularies,
        tensor: TensorGroup | None = None,
        exchange: Group | None = None,
    ):
        init = Init(config, tensor)
        model = config.model
        word_embedding = WordEmbedding(init, vocabularies)
        num_lower = model.num_layers - (model.rre_layers or (1 if model.query_layer else 0))
        self.vocabularies = vocabularies
        self.lower = Lower(init, word_embedding, num_lower)
        self.upper = Upper(init, vocabularies, word_embedding, exchange)
        if config.training.recompute:
            for block in self.layers:
                block.mark_recompute()
        self.lower_parameters = list(self.lower.trainable_params())
        self.upper_parameters = list(self.upper.trainable_params())
        self.parameters = {p.name: p for p in (*self.lower_parameters, *self.upper_parameters)}
        self.slices = {name: init.slices[name] for name in self.parameters}

    @property
    def layers(self) -> list[Block]:
        """All blocks from bottom to top, including the query layer."""
        top = [] if self.upper.query_layer is None else [self.upper.query_layer]
        return [*self.lower.blocks, *self.upper.blocks, *top]
