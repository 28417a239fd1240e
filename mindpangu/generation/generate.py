"""The plain loop: the whole window is computed anew for every token. A key-value cache comes with serving."""

from collections.abc import Callable, Sequence

import numpy as np

from mindpangu.data import HELDOUT, TokenShards, prompt_ids
from mindpangu.domains import Domain, domain_named
from mindpangu.errors import GenerationError
from mindpangu.generation.sampling import SamplingSettings, pick_token
from mindpangu.language_model import LanguageModel


def generate(
    model: LanguageModel,
    domain_name: str,
    prompt: str,
    max_new_tokens: int,
    settings: SamplingSettings,
    on_token: Callable[[int], object] = lambda token: None,
) -> str:
    """Continues a prompt in one domain, until `<eot>` or `max_new_tokens`.

    A text longer than model.seq_length is continued from its last seq_length tokens.

    Args:
        on_token: called with every new token id, e.g. to move a progress bar.

    Returns:
        The continuation alone.

    Raises:
        GenerationError: max_new_tokens below 1. ConfigError: a domain that the model does not have.
    """
    domain_id, domain = domain_named(model.domains, domain_name)
    tokenizer = model.tokenizer_of(domain)
    ids = prompt_ids(domain, prompt, tokenizer)
    return tokenizer.decode(continue_ids(model, domain_id, ids, max_new_tokens, settings, on_token))


def continue_ids(
    model: LanguageModel,
    domain_id: int,
    prompt: Sequence[int],
    max_new_tokens: int,
    settings: SamplingSettings,
    on_token: Callable[[int], object] = lambda token: None,
) -> list[int]:
    """`generate` on token ids: those that follow the prompt's, without `<eot>`."""
    if max_new_tokens < 1:
        raise GenerationError(f"max_new_tokens is {max_new_tokens}; allowed: >= 1")
    tokenizer = model.tokenizer_of(model.domains[domain_id])
    generator = np.random.default_rng(settings.seed)
    window = model.config.model.seq_length
    ids = list(prompt)
    for _ in range(max_new_tokens):
        recent = ids[-window:]
        tokens_BS = np.full((1, window), tokenizer.pad_id, np.int32)
        tokens_BS[0, : len(recent)] = recent
        logits_V = model.next_token_logits(tokens_BS, domain_id, last=len(recent) - 1)[0]
        # rows beyond the tokenizer (embedding slots may have spare ones) stand for no text
        token = pick_token(logits_V[: tokenizer.vocab_size], settings, generator)
        if token == tokenizer.eot_id:
            break
        ids.append(token)
        on_token(token)
    return ids[len(prompt) :]


def heldout_prompt(model: LanguageModel, shards: TokenShards, domain: Domain, num_tokens: int = 16) -> str:
    """The first words of the domain's first held-out document."""
    ids = shards.tokens(domain.name, HELDOUT)[: num_tokens + 1].tolist()
    # a cut through the bytes of a rare character decodes to a replacement character
    return model.tokenizer_of(domain).decode(ids[len(domain.control_tokens[:1]) :]).rstrip("\ufffd")
