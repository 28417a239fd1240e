"""Held-out loss of every domain, with a unigram baseline and the loss under wrong domain ids."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from mindpangu.config import Config
from mindpangu.data import HELDOUT, TRAIN, Batch, TokenShards, heldout_batches
from mindpangu.evaluation.record import DomainResult
from mindpangu.language_model import LanguageModel

UNIGRAM_PRIOR = 0.1


def evaluate_heldout(
    model: LanguageModel,
    shards: TokenShards,
    config: Config,
    wrong_domains: bool = True,
    progress: Callable[[Sequence], Iterable] = lambda items: items,
) -> list[DomainResult]:
    """Evaluates the first monitor.heldout_samples held-out samples of every domain that has any.

    Args:
        config: the model's configuration; its monitor section may differ.
        wrong_domains: also route each text as every other domain. Ids, positions and targets stay the same, so any
            difference comes only from the experts.
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
            # ids mean the same pieces only within one vocabulary, so only its domains are compared
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
    """Returns the mean −log p of the batches' targets, where p is a token's smoothed frequency: (count + 0.1) / total.

    Args:
        counts_V: number of occurrences of each token in the training split.
    """
    smoothed_V = counts_V + UNIGRAM_PRIOR
    log_p_V = np.log(smoothed_V / smoothed_V.sum())
    total = sum(float(-(log_p_V[batch.targets_BS] * batch.loss_mask_BS).sum()) for batch in batches)
    return total / _num_targets(batches)


def _mean_loss(model: LanguageModel, batches: Sequence[Batch], domain: int) -> float:
    """Returns the mean loss of the batches when all of their samples are routed as `domain`."""
    total = sum(
        float((model.token_losses(batch, (domain,) * len(batch.domain_of_slot)) * batch.loss_mask_BS).sum(dtype=float))
        for batch in batches
    )
    return total / _num_targets(batches)


def _num_targets(batches: Sequence[Batch]) -> float:
    return sum(float(batch.loss_mask_BS.sum()) for batch in batches)
