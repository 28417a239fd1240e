"""The PanGu decoder, in the two halves that the training step compiles apart.

    Lower: embedding → dense blocks → h
    Upper: h → RRE blocks → final LayerNorm → query layer (routed as well) → tied head → loss

PanGu-Σ has both; a dense PanGu-α (rre_layers 0) has all its blocks in Lower and a dense query layer in Upper.
The final LayerNorm stands *before* the query layer, and nothing after it, as in PanGu-α's published checkpoints
(its pipeline-parallel code has it the other way round). Experts are inputs, never Parameters: see `experts`.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from ascend_ops.grouped_all_to_all import first_order
from mindpangu.config import Config
from mindpangu.model.embedding import WordEmbedding
from mindpangu.model.embedding_slots import EmbeddingSlots
from mindpangu.model.layers import Attention, FeedForward, Init, LayerNorm
from mindpangu.model.precision import cast
from mindpangu.model.routed_experts import RoutedExperts
from mindpangu.parallel.collectives import TensorGroup


class Block(nn.Cell):
    """What dense and RRE blocks share: pre-norm attention, and the norm before the feed-forward network.

    `query_TH` replaces the attention's queries; the query layer passes its learned ones.
    """

    def __init__(self, init: Init, name: str):
        super().__init__(auto_prefix=False)
        self.attention_norm = LayerNorm(init, f"{name}.attention_norm")
        self.attention = Attention(init, f"{name}.attention")
        self.ffn_norm = LayerNorm(init, f"{name}.ffn_norm")
        self.tensor = init.tensor

    def recompute_parts(self):
        """For the backward pass. Part by part: as a whole, tensor parallelism in fp16 gives MindSpore a graph that it
        finds circular."""
        for part in (self.attention_norm, self.attention, self.ffn_norm):
            part.recompute()

    def attend(self, x_TH, positions_BS, query_TH):
        queries_TH, h_TH = self.attention_inputs(x_TH, query_TH)
        return x_TH + self.attention(queries_TH, h_TH, positions_BS)

    def attention_inputs(self, x_TH, query_TH):
        """What queries are made of, and what keys and values are made of."""
        h_TH = self.tensor.used(self.attention_norm(x_TH))
        return (h_TH if query_TH is None else self.tensor.used(query_TH)), h_TH


class DenseBlock(Block):
    def __init__(self, init: Init, name: str):
        super().__init__(init, name)
        self.ffn = FeedForward(init, f"{name}.ffn")

    def recompute_parts(self):
        super().recompute_parts()
        self.ffn.recompute()

    def construct(self, x_TH, positions_BS, query_TH=None):
        return self.feed(self.attend(x_TH, positions_BS, query_TH))

    def feed(self, x_TH):
        return x_TH + self.ffn(self.ffn_norm(x_TH))

    def feed_lines(self, x_TH, lines_T, slabs):
        """For a query layer, which may be of either kind."""
        return self.feed(x_TH)


class RREBlock(Block):
    """A block whose feed-forward network is routed; see `routed_experts`."""

    def __init__(self, init: Init, name: str, exchange):
        super().__init__(init, name)
        self.experts = RoutedExperts(init, exchange)

    def construct(self, x_TH, positions_BS, tokens_T, domain_slots_B, table_DV, slabs, query_TH=None):
        """Returns (x_TH, int32 [1]: tokens whose id was outside the table; see `rre_dispatch`)."""
        x_TH = self.attend(x_TH, positions_BS, query_TH)
        slot_ids_T = ops.repeat_elements(domain_slots_B, tokens_T.shape[0] // domain_slots_B.shape[0], 0)
        return self.feed(x_TH, tokens_T, slot_ids_T, table_DV, slabs)

    def feed(self, x_TH, tokens_T, slot_ids_T, table_DV, slabs):
        return self.experts(x_TH, self.ffn_norm(x_TH), tokens_T, slot_ids_T, table_DV, slabs)

    def feed_lines(self, x_TH, lines_T, slabs):
        """Token t goes to expert lines_T[t] of one pool: the tokens are numbered, and the lines are their table."""
        tokens_T = ops.cast(ops.arange(lines_T.shape[0]), ms.int32)
        # the host has just made this table for these tokens, so none of them can be outside
        return self.feed(x_TH, tokens_T, ops.zeros_like(tokens_T), ops.expand_dims(lines_T, 0), slabs)[0]

    def exchanged(
        self, x_TH, positions_BS, tokens_T, domain_slots_B, table_DV, slabs, counts, capacity, order, query_TH=None
    ):
        """The same with experts on several ranks; returns the next exchange's `order` as well."""
        x_TH = self.attend(x_TH, positions_BS, query_TH)
        slot_ids_T = ops.repeat_elements(domain_slots_B, tokens_T.shape[0] // domain_slots_B.shape[0], 0)
        return self.experts.exchanged(
            x_TH, self.ffn_norm(x_TH), tokens_T, slot_ids_T, table_DV, slabs, counts, capacity, order
        )


class Lower(nn.Cell):
    """Embedding and dense blocks."""

    def __init__(self, init: Init, word_embedding: WordEmbedding, num_blocks: int):
        super().__init__(auto_prefix=False)
        model = init.config.model
        self.word_embedding, self.compute_dtype = word_embedding, init.compute_dtype
        self.position_embedding = init.weight("position_embedding", model.seq_length, model.hidden_size)
        self.blocks = nn.CellList([DenseBlock(init, f"blocks.{i}") for i in range(num_blocks)], auto_prefix=False)

    def construct(self, rows_BS, positions_BS):
        """rows_BS: int32 rows of the embedding table. Returns h_TH."""
        x_TH = self.embed(rows_BS, positions_BS)
        for block in self.blocks:
            x_TH = block(x_TH, positions_BS)
        return x_TH

    def embed(self, rows_BS, positions_BS):
        x_BSH = self.word_embedding(rows_BS) + ops.gather(self.position_embedding, positions_BS, 0)
        return cast(x_BSH, self.compute_dtype).reshape((-1, x_BSH.shape[2]))


class Upper(nn.Cell):
    """RRE blocks, final LayerNorm, query layer and tied head."""

    def __init__(self, init: Init, word_embedding: WordEmbedding, exchange):
        super().__init__(auto_prefix=False)
        model = init.config.model
        self.word_embedding, self.rre_layers, self.compute_dtype = word_embedding, model.rre_layers, init.compute_dtype
        first, last = model.num_layers - model.rre_layers, model.num_layers - 1
        blocks = [RREBlock(init, f"blocks.{i}", exchange) for i in range(first, last)]
        self.blocks = nn.CellList(blocks, auto_prefix=False)
        self.final_norm = LayerNorm(init, "final_norm")
        self.query_embedding = init.weight("query_embedding", model.seq_length, model.hidden_size)
        if model.rre_layers:
            self.query_layer = RREBlock(init, "query_layer", exchange)
        else:
            self.query_layer = DenseBlock(init, "query_layer")
        self.none_invalid = Tensor(np.zeros(1, np.int32))

    def construct(self, h_TH, tokens_BS, positions_BS, domain_slots_B, tables_LDV, slabs):
        """Returns (x_TH, from which the head predicts the next token; the layers' sum of tokens with invalid ids).

        Args:
            domain_slots_B: int32 [B], the domain slot of each sample: whose table and slab its tokens use.
        """
        tokens_T, invalid = tokens_BS.reshape((-1,)), self.none_invalid
        per_layer = len(slabs) // self.rre_layers if self.rre_layers else 0
        for i, block in enumerate(self.blocks):
            layer_slabs = slabs[i * per_layer : (i + 1) * per_layer]
            h_TH, invalid_here = block(h_TH, positions_BS, tokens_T, domain_slots_B, tables_LDV[i], layer_slabs)
            invalid = invalid + invalid_here
        x_TH, query_TH = self.final_norm(h_TH), self.queries(positions_BS)
        if self.rre_layers == 0:
            return self.query_layer(x_TH, positions_BS, query_TH), invalid
        x_TH, invalid_here = self.query_layer(
            x_TH, positions_BS, tokens_T, domain_slots_B, tables_LDV[-1], slabs[-per_layer:], query_TH
        )
        return x_TH, invalid + invalid_here

    def exchanged(self, h_TH, tokens_BS, positions_BS, domain_slots_B, tables_LDV, slabs, counts, capacity):
        """The same with experts on several ranks.

        Args:
            counts: int32 [L, R], [L, R] and [L, R, G], of each layer; see `RoutedExperts.exchanged`.
            capacity: rows that may arrive in a layer, a Python int.
        """
        tokens_T, invalid, order = tokens_BS.reshape((-1,)), self.none_invalid, first_order()
        per_layer = len(slabs) // self.rre_layers
        send_LR, receive_LR, arriving_LRG = counts
        for i, block in enumerate(self.blocks):
            layer_slabs, of_layer = (
                slabs[i * per_layer : (i + 1) * per_layer],
                (send_LR[i], receive_LR[i], arriving_LRG[i]),
            )
            h_TH, invalid_here, order = block.exchanged(
                h_TH, positions_BS, tokens_T, domain_slots_B, tables_LDV[i], layer_slabs, of_layer, capacity, order
            )
            invalid = invalid + invalid_here
        of_layer = (send_LR[-1], receive_LR[-1], arriving_LRG[-1])
        x_TH, invalid_here, _ = self.query_layer.exchanged(
            self.final_norm(h_TH), positions_BS, tokens_T, domain_slots_B, tables_LDV[-1], slabs[-per_layer:],
            of_layer, capacity, order, self.queries(positions_BS),
        )  # fmt: skip
        return x_TH, invalid + invalid_here

    def queries(self, positions_BS):
        """The query layer's learned queries."""
        query_TH = ops.gather(self.query_embedding, positions_BS.reshape((-1,)), 0)
        return cast(query_TH, self.compute_dtype)

    def logits(self, x_TH, slot, sample_slots_B):
        """See `WordEmbedding.logits`."""
        return self.word_embedding.logits(x_TH, slot, sample_slots_B)

    def token_losses(self, x_TH, targets_BS, slot, sample_slots_B):
        """See `WordEmbedding.token_losses`."""
        return self.word_embedding.token_losses(x_TH, targets_BS, slot, sample_slots_B)


class Decoder:
    """The model's two halves and their parameters by name.

    Attributes:
        lower, upper: the Cells; the word embedding is one Parameter that both hold.
        slots: the embedding slots.
        parameters: name → Parameter, in a fixed order.
        parts: name → which part of the tensor this rank has.

    Args:
        tensor: the ranks that share the matrices. exchange: those that share the experts; None for this one alone.
    """

    def __init__(self, config: Config, slots: EmbeddingSlots, tensor: TensorGroup | None = None, exchange=None):
        init, model = Init(config, tensor), config.model
        word_embedding = WordEmbedding(init, slots)
        num_lower = model.num_layers - model.rre_layers if model.rre_layers else model.num_layers - 1
        self.slots = slots
        self.lower = Lower(init, word_embedding, num_lower)
        self.upper = Upper(init, word_embedding, exchange)
        if config.training.recompute:
            for block in (*self.lower.blocks, *self.upper.blocks, self.upper.query_layer):
                block.recompute_parts()
        self.lower_parameters = list(self.lower.trainable_params())
        self.upper_parameters = list(self.upper.trainable_params())
        self.parameters = {p.name: p for p in (*self.lower_parameters, *self.upper_parameters)}
        self.parts = {name: init.parts[name] for name in self.parameters}
