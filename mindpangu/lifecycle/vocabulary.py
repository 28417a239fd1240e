"""Reducing a model's vocabulary: removes rows of the embedding, columns of the tables, pieces of the tokenizer.

Expert files keep their tensors but get a new header, because it names their table and their tokenizer.
"""

from collections.abc import Mapping, Set
from dataclasses import replace

import numpy as np

from mindpangu.domains import MAIN_VOCABULARY
from mindpangu.errors import ConfigError
from mindpangu.lifecycle.blueprint import Blueprint, DenseChange, DomainContent
from mindpangu.model.vocabularies import Vocabularies
from mindpangu.tokenizer.compact import compact


def drop_vocabulary(blueprint: Blueprint, counts_V: Mapping[str, np.ndarray]) -> Blueprint:
    """Drops tokens that do not occur, and vocabularies without a domain.

    Control tokens, bytes, and pieces from which BPE merges kept ones stay.

    Args:
        counts_V: vocabulary → int64 [V], number of occurrences of each token in the text of the vocabulary's domains.

    Raises:
        ConfigError: a vocabulary has no counts.
    """
    in_use = {domain.vocabulary for domain in blueprint.domains}
    if unknown := sorted(in_use - counts_V.keys()):
        raise ConfigError(f"there are no token counts of vocabulary {unknown[0]!r}")
    return keep_vocabulary(blueprint, {name: set(np.flatnonzero(counts_V[name]).tolist()) for name in in_use})


def keep_vocabulary(blueprint: Blueprint, kept: Mapping[str, Set[int]]) -> Blueprint:
    """Keeps the given tokens and those that always stay (`tokenizer.compact`); drops vocabularies without a domain.

    Kept tokens keep their rows of the embedding and of its moments, and their columns of the tables.

    Args:
        kept: vocabulary → ids of the tokens to keep, for each vocabulary that has domains.
    """
    config = blueprint.config
    vocabularies = Vocabularies.build(config, blueprint.domains)
    tokenizers = {}
    old_ids = {}
    rows = []
    in_use = {domain.vocabulary for domain in blueprint.domains}
    for name, start in zip(vocabularies.names, vocabularies.starts, strict=True):
        if name not in in_use:
            continue
        tokenizers[name], old_ids[name] = compact(blueprint.tokenizers[name], kept[name])
        rows.append(start + old_ids[name])
    contents = {
        domain.name: _with_tokens(blueprint.contents[domain.name], old_ids[domain.vocabulary])
        for domain in blueprint.domains
        if blueprint.contents
    }
    rows_V = np.concatenate(rows)
    change = DenseChange((len(rows_V), config.model.hidden_size), lambda table_VH, is_moment: table_VH[rows_V])
    dense = blueprint.with_token_tables(change)
    sizes = {name: len(ids) for name, ids in old_ids.items()}
    model = replace(config.model, vocab_size=sizes.get(MAIN_VOCABULARY, config.model.vocab_size))
    vocabulary_configs = [
        replace(vocabulary, vocab_size=sizes[vocabulary.name])
        for vocabulary in config.domains.vocabularies
        if vocabulary.name in in_use
    ]
    config = replace(config, model=model, domains=replace(config.domains, vocabularies=vocabulary_configs))
    return replace(blueprint, config=config, tokenizers=tokenizers, contents=contents, dense=dense)


def _with_tokens(content: DomainContent, old_ids_V: np.ndarray) -> DomainContent:
    experts_LV = np.ascontiguousarray(content.table.experts_LV[:, old_ids_V])
    return DomainContent(replace(content.table, experts_LV=experts_LV), content.expert)
