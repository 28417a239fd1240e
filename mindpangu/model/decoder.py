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

from ascend_ops.grouped_ffn import grouped_ffn
from ascend_ops.rre_combine import rre_combine
from ascend_ops.rre_dispatch import rre_dispatch
from mindpangu.config import Config
from mindpangu.model.embedding_slots import EmbeddingSlots
from mindpangu.model.layers import Attention, FeedForward, Init, LayerNorm
from mindpangu.model.precision import cast


class Block(nn.Cell):
    """What dense and RRE blocks share: pre-norm attention, and the norm before the feed-forward network.

    `query_TH` replaces the attention's queries; the query layer passes its learned ones.
    """

    def __init__(self, init: Init, name: str):
        super().__init__(auto_prefix=False)
        self.attention_norm = LayerNorm(init, f"{name}.attention_norm")
        self.attention = Attention(init, f"{name}.attention")
        self.ffn_norm = LayerNorm(init, f"{name}.ffn_norm")

    def attend(self, x_TH, positions_BS, query_TH):
        h_TH = self.attention_norm(x_TH)
        queries_TH = h_TH if query_TH is None else query_TH
        return x_TH + self.attention(queries_TH, h_TH, positions_BS)


class DenseBlock(Block):
    def __init__(self, init: Init, name: str):
        super().__init__(init, name)
        self.ffn = FeedForward(init, f"{name}.ffn")

    def construct(self, x_TH, positions_BS, query_TH=None):
        x_TH = self.attend(x_TH, positions_BS, query_TH)
        return x_TH + self.ffn(self.ffn_norm(x_TH))


class RREBlock(Block):
    """A block whose feed-forward network is the expert that (layer, domain, token id) names: top 1, no gate."""

    def __init__(self, init: Init, name: str):
        super().__init__(init, name)
        self.block_rows = init.config.experts.block_rows

    def construct(self, x_TH, positions_BS, tokens_T, domain_slots_B, table_DV, slabs, query_TH=None):
        """Returns (x_TH, int32 [1]: tokens whose id was outside the table; see `rre_dispatch`)."""
        x_TH = self.attend(x_TH, positions_BS, query_TH)
        slot_ids_T = ops.repeat_elements(domain_slots_B, tokens_T.shape[0] // domain_slots_B.shape[0], 0)
        num_experts = slabs[0].shape[0]
        rows_TH, counts_G, positions_T, invalid = rre_dispatch(
            self.ffn_norm(x_TH), tokens_T, slot_ids_T, table_DV, num_experts
        )
        rows_TH = grouped_ffn(rows_TH, counts_G, slabs, self.block_rows)
        return rre_combine(rows_TH, positions_T, x_TH), invalid


class Lower(nn.Cell):
    """Embedding and dense blocks."""

    def __init__(self, init: Init, word_embedding, num_blocks: int):
        super().__init__(auto_prefix=False)
        model = init.config.model
        self.word_embedding, self.compute_dtype = word_embedding, init.compute_dtype
        self.position_embedding = init.weight("position_embedding", model.seq_length, model.hidden_size)
        self.blocks = nn.CellList([DenseBlock(init, f"blocks.{i}") for i in range(num_blocks)], auto_prefix=False)

    def construct(self, rows_BS, positions_BS):
        """rows_BS: int32 rows of the embedding table. Returns h_TH."""
        hidden = self.word_embedding.shape[1]
        x_BSH = ops.gather(self.word_embedding, rows_BS, 0) + ops.gather(self.position_embedding, positions_BS, 0)
        x_TH = cast(x_BSH, self.compute_dtype).reshape((-1, hidden))
        for block in self.blocks:
            x_TH = block(x_TH, positions_BS)
        return x_TH


class Upper(nn.Cell):
    """RRE blocks, final LayerNorm, query layer and tied head."""

    def __init__(self, init: Init, word_embedding, slots: EmbeddingSlots):
        super().__init__(auto_prefix=False)
        model = init.config.model
        self.word_embedding, self.rre_layers, self.compute_dtype = word_embedding, model.rre_layers, init.compute_dtype
        first, last = model.num_layers - model.rre_layers, model.num_layers - 1
        self.blocks = nn.CellList([RREBlock(init, f"blocks.{i}") for i in range(first, last)], auto_prefix=False)
        self.final_norm = LayerNorm(init, "final_norm")
        self.query_embedding = init.weight("query_embedding", model.seq_length, model.hidden_size)
        query_block = RREBlock if model.rre_layers else DenseBlock
        self.query_layer = query_block(init, "query_layer")
        self.head = ops.MatMul(transpose_b=True)
        self.slot_starts = slots.starts
        self.slot_ends = tuple(start + size for start, size in zip(slots.starts, slots.sizes, strict=True))
        self.slot_of_row_V = Tensor(np.repeat(np.arange(len(slots.sizes), dtype=np.int32), slots.sizes))
        self.starts = Tensor(np.array(slots.starts, np.int32))
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
        x_TH = self.final_norm(h_TH)
        query_TH = cast(ops.gather(self.query_embedding, positions_BS.reshape((-1,)), 0), self.compute_dtype)
        if self.rre_layers == 0:
            return self.query_layer(x_TH, positions_BS, query_TH), invalid
        x_TH, invalid_here = self.query_layer(
            x_TH, positions_BS, tokens_T, domain_slots_B, tables_LDV[-1], slabs[-per_layer:], query_TH
        )
        return x_TH, invalid + invalid_here

    def logits(self, x_TH, slot, sample_slots_B):
        """Scores of the next token, float32.

        Args:
            slot: the embedding slot of the whole batch, a Python int; the head then multiplies by its rows alone.
                -1 for a batch that mixes slots: scores over all rows, other slots' rows at -1e9.
            sample_slots_B: int32 [B], each sample's slot; used only when mixed.
        """
        if slot >= 0:
            rows_VH = self.word_embedding
            if len(self.slot_starts) > 1:
                rows_VH = rows_VH[self.slot_starts[slot] : self.slot_ends[slot]]
            return self._scores(x_TH, rows_VH)
        logits_TV = self._scores(x_TH, self.word_embedding)
        slot_T = ops.repeat_elements(sample_slots_B, x_TH.shape[0] // sample_slots_B.shape[0], 0)
        foreign_TV = ops.expand_dims(slot_T, 1) != self.slot_of_row_V
        return ops.masked_fill(logits_TV, foreign_TV, -1e9)

    def _scores(self, x_TH, rows_VH):
        return cast(self.head(x_TH, cast(rows_VH, self.compute_dtype)), ms.float32)

    def token_losses(self, x_TH, targets_BS, slot, sample_slots_B):
        """float32 [B, S]: −log p of each target (ids local to the slot)."""
        if slot < 0:
            targets_BS = targets_BS + ops.expand_dims(ops.gather(self.starts, sample_slots_B, 0), 1)
        # log_softmax and gather_d: ten times faster on the CPU than the fused cross entropy
        log_p_TV = ops.log_softmax(self.logits(x_TH, slot, sample_slots_B), -1)
        return -ops.gather_d(log_p_TV, 1, targets_BS.reshape((-1, 1))).reshape(targets_BS.shape)


class Decoder:
    """The model's two halves and their parameters by name.

    Attributes:
        lower, upper: the Cells; the word embedding is one Parameter that both hold.
        slots: the embedding slots.
        parameters: name → Parameter, in a fixed order.
    """

    def __init__(self, config: Config, slots: EmbeddingSlots):
        init, model = Init(config), config.model
        word_embedding = init.weight("word_embedding", slots.num_rows, model.hidden_size)
        num_lower = model.num_layers - model.rre_layers if model.rre_layers else model.num_layers - 1
        self.slots = slots
        self.lower = Lower(init, word_embedding, num_lower)
        self.upper = Upper(init, word_embedding, slots)
        self.lower_parameters = list(self.lower.trainable_params())
        self.upper_parameters = list(self.upper.trainable_params())
        self.parameters = {p.name: p for p in (*self.lower_parameters, *self.upper_parameters)}
