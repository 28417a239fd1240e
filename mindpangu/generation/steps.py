"""The compiled functions of generation, and the inputs that the host computes for them."""

from collections.abc import Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from ascend_ops.waiting import wait_for, wait_for_all
from mindpangu.experts import ExpertCache
from mindpangu.language_model import ModelParts, as_tensor
from mindpangu.model.cached_decoder import CachedDecoder
from mindpangu.model.decoder import Decoder


class ExpertPools:
    """The cached experts as tensors, and the cache entry of each token's expert. Routes on the host.

    Recreates tensors only if a pool has changed, because a device with its own memory copies them.

    Args:
        parts: the model without its weights.
        cache: cache of the experts; None for a dense model.
    """

    def __init__(self, parts: ModelParts, cache: ExpertCache | None):
        self._parts = parts
        self._cache = cache
        self._tensors: dict[int, tuple[int, list[Tensor]]] = {}

    @property
    def fetched(self) -> int:
        """Number of experts that have been read from disk."""
        return self._cache.fetched if self._cache else 0

    def route(self, tokens_T: np.ndarray, domains_T: np.ndarray) -> np.ndarray:
        """Returns the cache entry of each token's expert, int32 [L, T]; reads missing experts."""
        table = self._parts.table
        if self._cache is None or table is None:
            return np.zeros((1, len(tokens_T)), np.int32)
        entries_LT = []
        names = {domain: self._parts.domains[domain].name for domain in np.unique(domains_T).tolist()}
        for layer in range(table.num_layers):
            experts_T = np.zeros(len(tokens_T), np.int64)
            for domain, name in names.items():
                in_domain_T = domains_T == domain
                experts_T[in_domain_T] = table.array(layer, name)[tokens_T[in_domain_T]]
            entries_LT.append(self._cache.entries(layer, domains_T, experts_T))
        return np.stack(entries_LT)

    def slabs(self) -> list[Tensor]:
        """Returns the tensors of each RRE layer: up [entries, H, F], up_bias, down, and down_bias."""
        if self._cache is None:
            return []
        slabs = []
        for layer, version in enumerate(self._cache.version_L.tolist()):
            if self._tensors.get(layer, (-1,))[0] != version:
                self._tensors[layer] = (version, [as_tensor(tensor) for tensor in self._cache.pool(layer)])
            slabs += self._tensors[layer][1]
        return slabs


@dataclass(frozen=True)
class TokenScores:
    """Probabilities of what follows each of the S tokens that were appended to a text.

    Attributes:
        log_probs_S: float32 [S], log p of the targets.
        top_ids_SK: int32 [S, K], the K most probable tokens, the most probable first.
        top_log_probs_SK: float32 [S, K], their log p.
    """

    log_probs_S: np.ndarray
    top_ids_SK: np.ndarray
    top_log_probs_SK: np.ndarray


class DecodingSteps:
    """Prefills prompts and extends B texts of at most C tokens. Each function is compiled once per shape.

    Prompts are prefilled one by one, padded to one of a few lengths (`lengths`), so that a prompt's result does not
    depend on the others in its batch, and a prompt never needs more experts at once than its domain has.

    Args:
        parts: the model without its weights.
        decoder: the decoder with its weights.
        pools: the experts.
        batch: B.
        capacity: C, one of `lengths`.
    """

    def __init__(self, parts: ModelParts, decoder: Decoder, pools: ExpertPools, batch: int, capacity: int):
        self._parts = parts
        self._pools = pools
        self.batch = batch
        self.capacity = capacity
        self._lengths = lengths(capacity)
        self._append_lengths = lengths(capacity, shortest=4)
        self._cached = CachedDecoder(decoder, batch, capacity)
        self._compile(decoder)

    def prefill(self, text: int, domain: int, tokens: Sequence[int]) -> np.ndarray:
        """Reads the beginning of a text, replacing the text that had this index in the batch.

        Args:
            text: index of the text in the batch.
            domain: id of its domain.
            tokens: at most C token ids.

        Returns:
            Logits of the next token, float32 [V], for the V rows of the domain's vocabulary.
        """
        count = len(tokens)
        length = next(each for each in self._lengths if each >= count)
        # pad with a token of the text so that no extra expert is loaded
        tokens_P = np.full(length, tokens[-1], np.int32)
        tokens_P[:count] = tokens
        entries_LP = self._pools.route(tokens_P, np.full(length, domain))
        positions_1P = np.arange(length, dtype=np.int32)[None]
        vocabularies = self._parts.vocabularies
        vocabulary_1 = np.array([vocabularies.vocabulary_of_domain[domain]], np.int32)
        logits_1V = self._prefill(
            int(vocabulary_1[0]),
            as_tensor(vocabularies.rows(tokens_P[None], vocabulary_1)),
            as_tensor(positions_1P),
            as_tensor(np.array([count - 1], np.int32)),
            as_tensor(vocabulary_1),
            as_tensor(entries_LP),
            as_tensor(self._cached.cache_rows(np.array([text]), positions_1P)),
            *self._pools.slabs(),
        )
        return wait_for(logits_1V)[0]

    def extend(
        self, tokens_B: np.ndarray, positions_B: np.ndarray, domains_B: np.ndarray, active_B: np.ndarray
    ) -> list[np.ndarray]:
        """Adds a token to every active text.

        Args:
            tokens_B: int32, the new tokens.
            positions_B: int32, positions of the new tokens.
            domains_B: domain ids of all texts, including idle ones. If they share a vocabulary, the head computes only
                its logits.
            active_B: bool, True for at least one text. Idle texts get meaningless results, which are still written
                into the caches at their positions.

        Returns:
            Logits of each text's next token, like `prefill`.
        """
        vocabularies = self._parts.vocabularies
        active = int(active_B.argmax())
        vocabulary_of_sample_B = np.array(vocabularies.vocabulary_of_domain, np.int32)[domains_B]
        vocabulary = vocabularies.common(vocabulary_of_sample_B)
        rows_B1 = vocabularies.rows(tokens_B[:, None], vocabulary_of_sample_B)
        # route idle rows like an active row so that no extra expert is loaded
        entries_LB = self._pools.route(
            np.where(active_B, tokens_B, tokens_B[active]), np.where(active_B, domains_B, domains_B[active])
        )
        scores = self._extend(
            vocabulary,
            as_tensor(rows_B1),
            as_tensor(positions_B[:, None]),
            as_tensor(vocabulary_of_sample_B),
            as_tensor(entries_LB),
            as_tensor(self._cached.cache_rows(np.arange(self.batch), positions_B[:, None])),
            *self._pools.slabs(),
        )
        logits_BV = wait_for(scores)
        if vocabulary >= 0:
            return list(logits_BV)
        starts = vocabularies.starts
        sizes = vocabularies.sizes
        return [logits_BV[i, starts[v] : starts[v] + sizes[v]] for i, v in enumerate(vocabulary_of_sample_B.tolist())]

    def append(
        self,
        texts: Sequence[Sequence[int]],
        starts_B: np.ndarray,
        domains_B: np.ndarray,
        targets: Sequence[Sequence[int]],
        top: int = 0,
    ) -> list[TokenScores]:
        """Adds several tokens to every text, and scores what should follow each of them.

        Args:
            texts: the new tokens of each text; none for an idle text.
            starts_B: position of the first new token of each text. Earlier positions must have been read; later ones
                are forgotten. An idle text must have room for another token at its position.
            domains_B: domain ids of all texts, including idle ones.
            targets: the token that should follow each of the new tokens.
            top: number of the most probable tokens to name too.
        """
        vocabularies = self._parts.vocabularies
        counts_B = np.array([len(tokens) for tokens in texts])
        length = next(each for each in self._append_lengths if each >= counts_B.max())
        # a text is padded with its last token, an idle text is routed like an active one: so no extra expert is loaded
        active = int(counts_B.argmax())
        routed_B = np.where(counts_B > 0, domains_B, domains_B[active])
        tokens_BS = np.full((self.batch, length), texts[active][-1], np.int32)
        targets_BS = np.zeros((self.batch, length), np.int32)
        positions_BS = starts_B[:, None] + np.minimum(np.arange(length), np.maximum(counts_B - 1, 0)[:, None])
        for index, (tokens, wanted) in enumerate(zip(texts, targets, strict=True)):
            if len(tokens):
                tokens_BS[index] = tokens[-1]
                tokens_BS[index, : len(tokens)] = tokens
                targets_BS[index, : len(wanted)] = wanted
        positions_BS = positions_BS.astype(np.int32)
        vocabulary_of_sample_B = np.array(vocabularies.vocabulary_of_domain, np.int32)[routed_B]
        losses_BS, log_probs_BSK, rows_BSK = wait_for_all(
            self._append(
                vocabularies.common(vocabulary_of_sample_B),
                top,
                as_tensor(vocabularies.rows(tokens_BS, vocabulary_of_sample_B)),
                as_tensor(positions_BS),
                as_tensor(targets_BS),
                as_tensor(vocabulary_of_sample_B),
                as_tensor(self._pools.route(tokens_BS.reshape(-1), np.repeat(routed_B, length))),
                as_tensor(self._cached.cache_rows(np.arange(self.batch), positions_BS)),
                *self._pools.slabs(),
            )
        )
        first_row_B = np.zeros(self.batch, np.int32)
        if vocabularies.common(vocabulary_of_sample_B) < 0:
            first_row_B = np.array(vocabularies.starts, np.int32)[vocabulary_of_sample_B]
        return [
            TokenScores(-losses_BS[i, :count], rows_BSK[i, :count] - first_row_B[i], log_probs_BSK[i, :count])
            for i, count in enumerate(counts_B.tolist())
        ]

    def copy(self, sources_B: np.ndarray, count: int) -> None:
        """Makes every text a copy of the first `count` tokens of the text with index sources_B[text]."""
        length = next(each for each in self._lengths if each >= count)
        positions_BS = np.tile(np.arange(length), (self.batch, 1))
        from_rows = self._cached.cache_rows(sources_B, positions_BS)
        to_rows = self._cached.cache_rows(np.arange(self.batch), positions_BS)
        wait_for(self._copy(as_tensor(from_rows), as_tensor(to_rows)))

    def _compile(self, decoder: Decoder) -> None:
        cached = self._cached
        head = decoder.upper

        @ms.jit
        def prefill(vocabulary, rows_1P, positions_1P, last_1, vocabulary_1, entries_LP, cache_rows, *slabs):
            x_1H = cached.prefill(rows_1P, positions_1P, last_1, entries_LP, cache_rows, slabs)
            return head.logits(x_1H, vocabulary, vocabulary_1)

        @ms.jit
        def extend(vocabulary, rows_B1, positions_B1, vocabulary_of_sample_B, entries_LB, cache_rows, *slabs):
            x_BH = cached.append(rows_B1, positions_B1, entries_LB, cache_rows, slabs)
            return head.logits(x_BH, vocabulary, vocabulary_of_sample_B)

        @ms.jit
        def append(
            vocabulary, top, rows_BS, positions_BS, targets_BS, vocabulary_of_sample_B, entries_LT, cache_rows, *slabs
        ):
            x_TH = cached.append(rows_BS, positions_BS, entries_LT, cache_rows, slabs)
            losses_BS = head.token_losses(x_TH, targets_BS, vocabulary, vocabulary_of_sample_B)
            shape = (*rows_BS.shape, top)
            if top == 0:
                return losses_BS, ops.zeros(shape, ms.float32), ops.zeros(shape, ms.int32)
            logits_TV = head.logits(x_TH, vocabulary, vocabulary_of_sample_B)
            highest_TK, rows_TK = ops.topk(logits_TV, top)
            sum_T1 = ops.exp(logits_TV - highest_TK[:, :1]).sum(1, keepdims=True)
            log_probs_TK = highest_TK - highest_TK[:, :1] - ops.log(sum_T1)
            return losses_BS, log_probs_TK.reshape(shape), rows_TK.reshape(shape)

        @ms.jit
        def copy(from_rows, to_rows):
            return cached.copy(from_rows, to_rows)

        self._prefill = prefill
        self._extend = extend
        self._append = append
        self._copy = copy


def lengths(longest: int, shortest: int = 16) -> list[int]:
    """Returns the lengths to compile for: the powers of two from `shortest` below `longest`, and `longest`."""
    powers = [shortest << i for i in range(longest.bit_length()) if shortest << i < longest]
    return [*powers, longest]
