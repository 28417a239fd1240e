"""Held-out loss by domain, beside what word frequencies alone would reach, and under the wrong domain ids."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mindpangu.config import Config
from mindpangu.data import HELDOUT, TRAIN, Batch, TokenShards, heldout_batches
from mindpangu.language_model import LanguageModel

UNIGRAM_PRIOR = 0.1


def perplexity(loss: float) -> float:
    """exp of a loss in nats; infinite where a float cannot hold it."""
    return math.exp(loss) if loss < 700 else math.inf


@dataclass(frozen=True)
class DomainResult:
    """One domain's held-out text.

    Attributes:
        tokens: targets that count.
        loss: mean −log p under the model. unigram_loss: under the token frequencies of the domain's training split.
        loss_as: the same tokens routed as another domain: name → loss.
    """

    domain: str
    tokens: int
    loss: float
    unigram_loss: float
    loss_as: dict[str, float]

    @property
    def perplexity(self) -> float:
        return perplexity(self.loss)

    @property
    def unigram_perplexity(self) -> float:
        return perplexity(self.unigram_loss)

    @property
    def ratio(self) -> float:
        return perplexity(self.loss - self.unigram_loss)


def evaluate_heldout(
    model: LanguageModel,
    shards: TokenShards,
    config: Config,
    wrong_domains: bool = True,
    progress: Callable[[Sequence], Sequence] = lambda items: items,
) -> list[DomainResult]:
    """Evaluates the first monitor.heldout_samples held-out samples of every domain that has any.

    Args:
        config: the model's, perhaps with another monitor section.
        wrong_domains: also route each text as every other domain; ids, positions and targets stay the same, so the
            difference is the experts' alone.
        progress: wraps the list of domains, e.g. in a progress bar.
    """
    names = [domain.name for domain in model.domains]
    batch_size = config.training.local_batch_size
    results = []
    for own, name in progress(list(enumerate(names))):
        if len(shards.samples(name, HELDOUT, config.model.seq_length)) == 0:
            continue
        batches = list(heldout_batches(shards, name, config, batch_size))
        losses = {own: _mean_loss(model, batches, own)}
        if wrong_domains and model.config.model.rre_layers:
            # domains may only exchange ids inside one vocabulary: elsewhere the ids mean other words
            vocabulary = model.domains[own].vocabulary
            others = [i for i, other in enumerate(model.domains) if i != own and other.vocabulary == vocabulary]
            losses |= {other: _mean_loss(model, batches, other) for other in others}
        counts_V = shards.token_counts(name, TRAIN, shards.vocab_size)
        results.append(
            DomainResult(
                domain=name,
                tokens=int(sum(batch.loss_mask_BS.sum() for batch in batches)),
                loss=losses[own],
                unigram_loss=unigram_loss(counts_V, batches),
                loss_as={names[other]: loss for other, loss in losses.items() if other != own},
            )
        )
    return results


def unigram_loss(counts_V: np.ndarray, batches: Sequence[Batch]) -> float:
    """Mean −log p of the batches' targets when p is the smoothed frequency of the token: (count + 0.1) / total."""
    smoothed_V = counts_V + UNIGRAM_PRIOR
    log_p_V = np.log(smoothed_V / smoothed_V.sum())
    total = sum(float(-(log_p_V[batch.targets_BS] * batch.loss_mask_BS).sum()) for batch in batches)
    return total / sum(float(batch.loss_mask_BS.sum()) for batch in batches)


def format_results(results: Sequence[DomainResult]) -> str:
    """A readable table: a row for each domain."""
    wrong = any(result.loss_as for result in results)
    lines = [
        f"{'domain':>12} {'tokens':>8} {'perplexity':>11} {'unigram':>9} {'ratio':>6}"
        + ("   perplexity when routed as another domain" if wrong else "")
    ]
    for result in results:
        others = "  ".join(f"{name} {perplexity(loss):.0f}" for name, loss in result.loss_as.items())
        lines.append(
            f"{result.domain:>12} {result.tokens:>8,} {result.perplexity:>11.1f} {result.unigram_perplexity:>9.1f} "
            f"{result.ratio:>6.3f}" + (f"   {others}" if wrong else "")
        )
    return "\n".join(lines)


def _mean_loss(model: LanguageModel, batches: Sequence[Batch], domain: int) -> float:
    total = sum(
        float((model.token_losses(batch, (domain,) * len(batch.domain_of_slot)) * batch.loss_mask_BS).sum(dtype=float))
        for batch in batches
    )
    return total / sum(float(batch.loss_mask_BS.sum()) for batch in batches)
