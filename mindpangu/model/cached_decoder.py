"""The decoder with a key-value cache: a text is read once, and each further token costs one token.

Nothing here has weights of its own: `CachedDecoder` goes through the blocks of a `Decoder`. Its cache has static
shapes, one pair of Parameters a layer, the query layer included (whose keys and values come from the final norm, and
whose queries are the learned ones of the positions). The compiled functions write new rows into them in place with
ScatterUpdate, on the CPU as on Ascend. It takes rows of the first axis, and the view of them that attention needs is a
copy on the CPU. A cache in host memory, read as an input and written by the host, spares this but was hardly faster (4
layers of 512 tokens, B 8: 7.5 against 8.9 ms; B 1: 2.7 against 2.2 ms), and would go to an NPU for every token.

Experts are addressed by cache entry: in layer l, token t goes to entry entries_LT[l, t] of that layer's pool. To
`rre_dispatch` the entries are a routing table and the tokens are numbered, so it is the operator that training uses.

Shapes: B batch, P tokens of a prompt with padding, C capacity of the cache, T tokens of a call, N heads, K head size,
L RRE layers.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindpangu.model.decoder import Decoder


class LayerCache(nn.Cell):
    """A layer's keys and values of B texts of at most C tokens: two Parameters, [B·N·C, K]."""

    def __init__(self, name: str, shape_BNCK: tuple[int, int, int, int], dtype):
        super().__init__(auto_prefix=False)
        self.shape_BNCK = shape_BNCK
        nothing = np.zeros((int(np.prod(shape_BNCK[:3])), shape_BNCK[3]), np.float32)
        self.key = Parameter(Tensor(nothing, dtype), name=f"{name}.key", requires_grad=False)
        self.value = Parameter(Tensor(nothing, dtype), name=f"{name}.value", requires_grad=False)
        self.update = ops.ScatterUpdate()

    def construct(self, rows_R, key, value):
        """Writes keys and values of some tokens into these rows; returns those of all, [B, N, C, K]."""
        size = self.shape_BNCK[3]
        keys = self.update(self.key, rows_R, key.reshape((-1, size)))
        values = self.update(self.value, rows_R, value.reshape((-1, size)))
        return keys.reshape(self.shape_BNCK), values.reshape(self.shape_BNCK)


class CachedDecoder(nn.Cell):
    """Reads prompts into a cache and extends its texts token by token.

    Args:
        decoder: of this process alone, without tensor parallelism.
        batch, capacity: B texts of at most C tokens, C <= model.seq_length.
    """

    def __init__(self, decoder: Decoder, batch: int, capacity: int):
        super().__init__(auto_prefix=False)
        self.lower, self.upper = decoder.lower, decoder.upper
        num_layers = len(decoder.layers)
        attention = decoder.layers[-1].attention
        self.rre_layers = self.upper.rre_layers
        self.shape_BNCK = (batch, attention.num_heads, capacity, attention.head_size)
        self.caches = nn.CellList(
            [LayerCache(f"cache.{i}", self.shape_BNCK, attention.compute_dtype) for i in range(num_layers)],
            auto_prefix=False,
        )
        self.index_C = Tensor(np.arange(capacity, dtype=np.int32))

    def cache_rows(self, texts_M: np.ndarray, positions_MS: np.ndarray) -> np.ndarray:
        """int32 [M·N·S]: the rows of the caches for tokens at these positions of these texts; on the host."""
        _, num_heads, capacity, _ = self.shape_BNCK
        heads_MN = texts_M[:, None] * num_heads + np.arange(num_heads)
        return (heads_MN[:, :, None] * capacity + positions_MS[:, None, :]).astype(np.int32).reshape(-1)

    def prefill(self, rows_1P, positions_1P, last_1, entries_LT, cache_rows, slabs):
        """Reads one text's prompt.

        Args:
            rows_1P, positions_1P: int32; padding stands at the end.
            last_1: int32 [1], index of the prompt's last token.
            entries_LT: int32 [L, P]; of padding any that are in use.
            cache_rows: what the method of this name gives.
            slabs: of each RRE layer the experts' tensors, [entries, …].

        Returns:
            x_1H, from which the head predicts the next token.
        """
        x_TH = self._through(rows_1P, positions_1P, entries_LT, cache_rows, slabs, self._among_themselves, None)
        return ops.gather(x_TH, last_1, 0)

    def extend(self, rows_B1, positions_B1, entries_LT, cache_rows, slabs):
        """Adds one token to every text; arguments as for `prefill`. Returns x_BH."""
        later_BC = ops.cast(ops.expand_dims(self.index_C, 0) > positions_B1, ms.float32) * -1e9
        unseen = later_BC.reshape((later_BC.shape[0], 1, 1, -1))
        return self._through(rows_B1, positions_B1, entries_LT, cache_rows, slabs, self._to_the_cache, unseen)

    # No `if …: return` may follow a write: MindSpore 2.10 then loses the write, without a word. Hence two functions to
    # attend with, and blocks of both kinds that have `feed_cached`.

    def _through(self, rows_BS, positions_BS, entries_LT, cache_rows, slabs, attend, unseen):
        x_TH, layer = self.lower.embed(rows_BS, positions_BS), 0
        per_layer = len(slabs) // self.rre_layers if self.rre_layers else 0
        for block in self.lower.blocks:
            x_TH = block.feed(attend(block, layer, x_TH, None, positions_BS, cache_rows, unseen))
            layer += 1
        for i, block in enumerate(self.upper.blocks):
            x_TH = attend(block, layer, x_TH, None, positions_BS, cache_rows, unseen)
            x_TH = block.feed_cached(x_TH, entries_LT[i], slabs[per_layer * i : per_layer * (i + 1)])
            layer += 1
        x_TH = self.upper.final_norm(x_TH)
        if self.upper.query_layer is None:
            return x_TH
        query_TH = self.upper.queries(positions_BS)
        x_TH = attend(self.upper.query_layer, layer, x_TH, query_TH, positions_BS, cache_rows, unseen)
        return self.upper.query_layer.feed_cached(x_TH, entries_LT[-1], slabs[-per_layer:])

    def _among_themselves(self, block, layer, x_TH, query_TH, positions_BS, cache_rows, unseen):
        """The tokens of a prompt look at each other only."""
        x_TH, queries_TH, h_TH = block.attention_inputs(x_TH, query_TH)
        key, value = block.attention.keys_and_values(h_TH, positions_BS)
        self.caches[layer](cache_rows, key, value)
        unseen = block.attention.unseen(positions_BS)
        return x_TH + block.attention.attend(queries_TH, key, value, unseen, positions_BS)

    def _to_the_cache(self, block, layer, x_TH, query_TH, positions_BS, cache_rows, unseen):
        """A new token looks at everything in its text's cache, itself included."""
        x_TH, queries_TH, h_TH = block.attention_inputs(x_TH, query_TH)
        keys, values = self.caches[layer](cache_rows, *block.attention.keys_and_values(h_TH, positions_BS))
        return x_TH + block.attention.attend(queries_TH, keys, values, unseen, positions_BS)
