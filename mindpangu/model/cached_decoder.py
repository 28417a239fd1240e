"""The decoder with a key-value cache: a prompt is read once, and each new token costs the work of one token.

`CachedDecoder` has no weights of its own; it runs the blocks of a `Decoder`. The cache has static shapes: one pair of
Parameters per layer, including the query layer (whose keys and values come from the final norm, and whose queries are
the learned ones). The compiled functions write new rows into it in place with ScatterUpdate, on the CPU as on Ascend.
ScatterUpdate writes rows of the first axis, so on the CPU the reshaped cache that attention needs is a copy. A cache in
host memory, read as an input and written by the host, avoids the copy but was hardly faster (4 layers of 512 tokens, B
8: 7.5 against 8.9 ms; B 1: 2.7 against 2.2 ms), and would be copied to an NPU for every token.

Experts are addressed by cache entry: in layer l, token t goes to entry entries_LT[l, t] of that layer's pool. For
`rre_dispatch` the entries are a routing table and the token ids are 0, 1, 2, …, so training and decoding share the
operator.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindpangu.model.decoder import Decoder


class LayerCache(nn.Cell):
    """The keys and values of one layer, for B texts of at most C tokens: two Parameters [B·N·C, K]."""

    def __init__(self, name: str, shape_BNCK: tuple[int, int, int, int], dtype: ms.dtype.Type):
        super().__init__(auto_prefix=False)
        self.shape_BNCK = shape_BNCK
        nothing = np.zeros((int(np.prod(shape_BNCK[:3])), shape_BNCK[3]), np.float32)
        self.key = Parameter(Tensor(nothing, dtype), name=f"{name}.key", requires_grad=False)
        self.value = Parameter(Tensor(nothing, dtype), name=f"{name}.value", requires_grad=False)
        self.update = ops.ScatterUpdate()

    def copy(self, from_rows, to_rows):
        """Copies rows of the cache to other rows. Returns a number, which must be used, or MindSpore drops the copy."""
        keys = self.update(self.key, to_rows, ops.gather(self.key, from_rows, 0))
        values = self.update(self.value, to_rows, ops.gather(self.value, from_rows, 0))
        return keys[0, 0] + values[0, 0]

    def construct(self, cache_rows, key, value):
        """Writes the keys and values of some tokens to these rows. Returns all keys and values, [B, N, C, K]."""
        size = self.shape_BNCK[3]
        keys = self.update(self.key, cache_rows, key.reshape((-1, size)))
        values = self.update(self.value, cache_rows, value.reshape((-1, size)))
        return keys.reshape(self.shape_BNCK), values.reshape(self.shape_BNCK)


class CachedDecoder(nn.Cell):
    """Reads prompts into a cache and appends tokens to the texts.

    Args:
        decoder: a decoder of a single process, without tensor parallelism.
        batch, capacity: B texts of at most C tokens, C <= model.seq_length.
    """

    def __init__(self, decoder: Decoder, batch: int, capacity: int):
        super().__init__(auto_prefix=False)
        self.lower = decoder.lower
        self.upper = decoder.upper
        num_layers = len(decoder.layers)
        attention = decoder.layers[-1].attention
        self.rre_layers = self.upper.rre_layers
        self.shape_BNCK = (batch, attention.num_heads, capacity, attention.head_size)
        self.caches = nn.CellList(
            [LayerCache(f"cache.{i}", self.shape_BNCK, attention.compute_dtype) for i in range(num_layers)],
            auto_prefix=False,
        )
        self.index_C = Tensor(np.arange(capacity, dtype=np.int32))

    def cache_rows(self, texts_B: np.ndarray, positions_BS: np.ndarray) -> np.ndarray:
        """Computes on the host the cache rows, int32 [B·N·S], of the tokens at these positions of these texts."""
        _, num_heads, capacity, _ = self.shape_BNCK
        heads_BN = texts_B[:, None] * num_heads + np.arange(num_heads)
        return (heads_BN[:, :, None] * capacity + positions_BS[:, None, :]).astype(np.int32).reshape(-1)

    def prefill(self, rows_1P, positions_1P, last_1, entries_LT, cache_rows, slabs):
        """Reads the prompt of one text.

        Args:
            rows_1P, positions_1P: int32; padding is at the end.
            last_1: int32 [1], index of the prompt's last token.
            entries_LT: int32 [L, P]; padding may have any entry in use.
            cache_rows: result of the method `cache_rows`.
            slabs: the experts' tensors of every RRE layer, [entries, …].

        Returns:
            x_1H, from which the head predicts the next token.
        """
        x_TH = self._run(rows_1P, positions_1P, entries_LT, cache_rows, slabs, self._attend_within_prompt, None)
        return ops.gather(x_TH, last_1, 0)

    def append(self, rows_BS, positions_BS, entries_LT, cache_rows, slabs):
        """Adds S tokens to every text, which attend to the earlier positions of their text, and to each other.

        A text with fewer new tokens is padded with copies of its last one at the same position.

        Args: as for `prefill`.

        Returns:
            x_TH, from which the head predicts the token after each.
        """
        later_BSC = ops.cast(self.index_C > ops.expand_dims(positions_BS, 2), ms.float32) * -1e9
        mask = ops.expand_dims(later_BSC, 1)
        return self._run(rows_BS, positions_BS, entries_LT, cache_rows, slabs, self._attend_to_cache, mask)

    def copy(self, from_rows, to_rows):
        """Copies cache rows in every layer; both are results of the method `cache_rows`."""
        done = 0.0
        for cache in self.caches:
            done = done + cache.copy(from_rows, to_rows)
        return done

    # No `if …: return` may follow a write, because MindSpore 2.10 then silently loses the write. That is why there are
    # two `_attend…` methods, and why both kinds of blocks have `feed_cached`.

    def _run(self, rows_BS, positions_BS, entries_LT, cache_rows, slabs, attend, mask):
        x_TH = self.lower.embed(rows_BS, positions_BS)
        layer = 0
        per_layer = len(slabs) // self.rre_layers if self.rre_layers else 0
        for block in self.lower.blocks:
            x_TH, h_TH = attend(block, layer, x_TH, None, positions_BS, cache_rows, mask)
            x_TH = block.feed_cached(x_TH, h_TH, None, ())
            layer += 1
        for i, block in enumerate(self.upper.blocks):
            x_TH, h_TH = attend(block, layer, x_TH, None, positions_BS, cache_rows, mask)
            x_TH = block.feed_cached(x_TH, h_TH, entries_LT[i], slabs[per_layer * i : per_layer * (i + 1)])
            layer += 1
        x_TH = self.upper.final_norm(x_TH)
        if self.upper.query_layer is None:
            return x_TH
        query_TH = self.upper.queries(positions_BS)
        x_TH, h_TH = attend(self.upper.query_layer, layer, x_TH, query_TH, positions_BS, cache_rows, mask)
        return self.upper.query_layer.feed_cached(x_TH, h_TH, entries_LT[-1], slabs[-per_layer:])

    def _attend_within_prompt(self, block, layer, x_TH, query_TH, positions_BS, cache_rows, mask):
        """Lets the tokens of a prompt attend to each other only."""
        attention = block.attention
        x_TH, h_TH, query_TH = block.attention_inputs(x_TH, None, query_TH)
        query_TH, key_TH, value_TH = attention.projections(h_TH, query_TH)
        key = attention.split_and_rotate(key_TH, positions_BS)
        self.caches[layer](cache_rows, key, attention.split(value_TH, positions_BS))
        heads_TH = attention.heads(query_TH, key_TH, value_TH, positions_BS)
        return block.ffn_norm(x_TH, attention.output(heads_TH))

    def _attend_to_cache(self, block, layer, x_TH, query_TH, positions_BS, cache_rows, mask):
        """Lets new tokens attend to their text's cache, which then includes themselves."""
        attention = block.attention
        x_TH, h_TH, query_TH = block.attention_inputs(x_TH, None, query_TH)
        query_TH, key_TH, value_TH = attention.projections(h_TH, query_TH)
        key = attention.split_and_rotate(key_TH, positions_BS)
        keys, values = self.caches[layer](cache_rows, key, attention.split(value_TH, positions_BS))
        heads_TH = attention.cached_heads(query_TH, keys, values, mask, positions_BS)
        return block.ffn_norm(x_TH, attention.output(heads_TH))
