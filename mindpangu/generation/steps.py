"""The compiled functions of generation, and what the host gives them: cache rows, positions, lines of experts."""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindpangu.experts import ExpertLines
from mindpangu.language_model import ModelParts, as_tensor
from mindpangu.model.cached_decoder import CachedDecoder
from mindpangu.model.decoder import Decoder


class ExpertPools:
    """The lines of experts as tensors, and the lines that tokens need: all routing is done here, on the host.

    Tensors are made anew only where a pool changed, because a device with memory of its own copies them.

    Args:
        lines: None for a dense model.
    """

    def __init__(self, parts: ModelParts, lines: ExpertLines | None):
        self._parts, self._lines = parts, lines
        self._tensors: dict[int, tuple[int, list[Tensor]]] = {}

    @property
    def fetched(self) -> int:
        """Experts that were read."""
        return self._lines.fetched if self._lines else 0

    def route(self, tokens_T: np.ndarray, domains_T: np.ndarray) -> np.ndarray:
        """int32 [L, T]: the line of each token's expert in each RRE layer, after missing ones were read."""
        if self._lines is None:
            return np.zeros((1, len(tokens_T)), np.int32)
        table, lines_LT = self._parts.table, []
        names = {domain: self._parts.domains[domain].name for domain in np.unique(domains_T).tolist()}
        for layer in range(table.num_layers):
            experts_T = np.zeros(len(tokens_T), np.int64)
            for domain, name in names.items():
                mine_T = domains_T == domain
                experts_T[mine_T] = table.array(layer, name)[tokens_T[mine_T]]
            lines_LT.append(self._lines.places(layer, domains_T, experts_T))
        return np.stack(lines_LT)

    def slabs(self) -> list[Tensor]:
        """Of each RRE layer up [lines, H, F], up_bias, down and down_bias."""
        if self._lines is None:
            return []
        slabs = []
        for layer, version in enumerate(self._lines.version_L.tolist()):
            if self._tensors.get(layer, (-1,))[0] != version:
                self._tensors[layer] = (version, [as_tensor(tensor) for tensor in self._lines.pool(layer)])
            slabs += self._tensors[layer][1]
        return slabs


class DecodingSteps:
    """Reads prompts and extends texts, for B texts of at most C tokens; each function is compiled once.

    Prompts are read one by one, padded to one of a few lengths (`lengths`), so how a prompt is read does not depend on
    the others in its batch, and needs no more experts at once than its domain has.

    Args:
        capacity: C, one of `lengths`.
    """

    def __init__(self, parts: ModelParts, decoder: Decoder, pools: ExpertPools, batch: int, capacity: int):
        self._parts, self._pools, self.batch, self.capacity = parts, pools, batch, capacity
        self._lengths = lengths(capacity)
        self._cached = CachedDecoder(decoder, batch, capacity)
        self._compile(decoder)

    def prefill(self, text: int, domain: int, tokens: Sequence[int]) -> np.ndarray:
        """Reads the beginning of a text; what its place in the batch held is forgotten.

        Args:
            text: its place in the batch. tokens: at most C.

        Returns:
            float32 [V]: scores of the next token, V rows of the domain's embedding slot.
        """
        count = len(tokens)
        length = next(each for each in self._lengths if each >= count)
        # padding is a token that is there already: it needs no other expert
        tokens_P = np.full(length, tokens[-1], np.int32)
        tokens_P[:count] = tokens
        lines_LP = self._pools.route(tokens_P, np.full(length, domain))
        positions_1P = np.arange(length, dtype=np.int32)[None]
        slots = self._parts.slots
        slot_1 = np.array([slots.slot_of_domain[domain]], np.int32)
        logits_1V = self._prefill(
            int(slot_1[0]),
            as_tensor(slots.rows(tokens_P[None], slot_1)),
            as_tensor(positions_1P),
            as_tensor(np.array([count - 1], np.int32)),
            as_tensor(slot_1),
            as_tensor(lines_LP),
            as_tensor(self._cached.cache_rows(np.array([text]), positions_1P)),
            *self._pools.slabs(),
        )
        return logits_1V.asnumpy()[0]

    def extend(
        self, tokens_B: np.ndarray, positions_B: np.ndarray, domains_B: np.ndarray, active_B: np.ndarray
    ) -> list[np.ndarray]:
        """Adds a token to every active text.

        Args:
            tokens_B, positions_B: int32, of the new tokens. domains_B: of all texts, the idle ones too: if they share
                an embedding slot, the head multiplies by that alone.
            active_B: bool, at least one. What is computed for the others means nothing, but it is written into their
                caches, at their positions.

        Returns:
            Scores of each text's next token, like `prefill`.
        """
        slots, someone = self._parts.slots, int(active_B.argmax())
        sample_slots_B = np.array(slots.slot_of_domain, np.int32)[domains_B]
        slot = slots.common(sample_slots_B)
        rows_B1 = slots.rows(tokens_B[:, None], sample_slots_B)
        # an idle text goes where an active one goes: it needs no other expert
        lines_LB = self._pools.route(
            np.where(active_B, tokens_B, tokens_B[someone]), np.where(active_B, domains_B, domains_B[someone])
        )
        logits_BV = self._extend(
            slot,
            as_tensor(rows_B1),
            as_tensor(positions_B[:, None]),
            as_tensor(sample_slots_B),
            as_tensor(lines_LB),
            as_tensor(self._cached.cache_rows(np.arange(self.batch), positions_B[:, None])),
            *self._pools.slabs(),
        ).asnumpy()
        if slot >= 0:
            return list(logits_BV)
        starts, sizes = slots.starts, slots.sizes
        return [logits_BV[i, starts[s] : starts[s] + sizes[s]] for i, s in enumerate(sample_slots_B.tolist())]

    def _compile(self, decoder: Decoder) -> None:
        cached, head = self._cached, decoder.upper

        @ms.jit
        def prefill(slot, rows_1P, positions_1P, last_1, slot_1, lines_LP, cache_rows, *slabs):
            x_1H = cached.prefill(rows_1P, positions_1P, last_1, lines_LP, cache_rows, slabs)
            return head.logits(x_1H, slot, slot_1)

        @ms.jit
        def extend(slot, rows_B1, positions_B1, sample_slots_B, lines_LB, cache_rows, *slabs):
            x_BH = cached.extend(rows_B1, positions_B1, lines_LB, cache_rows, slabs)
            return head.logits(x_BH, slot, sample_slots_B)

        self._prefill, self._extend = prefill, extend


def lengths(longest: int, shortest: int = 16) -> list[int]:
    """The lengths that are compiled: powers of two below the longest, and that."""
    powers = [shortest << i for i in range(longest.bit_length()) if shortest << i < longest]
    return [*powers, longest]
