"""A model with fewer tokens: the embedding loses rows, the tables columns, the tokenizer pieces.

Expert files keep their tensors and get another header, as they name the table and the tokenizer that they belong to.
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
    """Without the tokens that do not occur, and without vocabularies that have no domain. Control tokens, bytes and
    what BPE merges the others from stay.

    Args:
        counts_V: vocabulary → int64 [V], how often each token occurs in the text of the vocabulary's domains.

    Raises:
        ConfigError: a vocabulary without counts.
    """
    in_use = {domain.vocabulary for domain in blueprint.domains}
    if unknown := sorted(in_use - counts_V.keys()):
        raise ConfigError(f"nothing is known of the tokens that vocabulary {unknown[0]!r} uses")
    return keep_vocabulary(blueprint, {name: set(np.flatnonzero(counts_V[name]).tolist()) for name in in_use})


def keep_vocabulary(blueprint: Blueprint, kept: Mapping[str, Set[int]]) -> Blueprint:
    """With some of the tokens, those that always stay (`tokenizer.compact`), and no vocabulary without a domain.
    The rows of the embedding and of its moments, and the columns of the tables, are those that the tokens had.

    Args:
        kept: vocabulary → ids of the tokens to keep, for each vocabulary that has domains.
    """
    config, vocabularies = blueprint.config, Vocabularies.build(blueprint.config, blueprint.domains)
    tokenizers, old_ids, rows = {}, {}, []
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
    config = replace(
        config,
        model=replace(config.model, vocab_size=sizes.get(MAIN_VOCABULARY, config.model.vocab_size)),
        domains=replace(
            config.domains,
            vocabularies=[
                replace(vocabulary, vocab_size=sizes[vocabulary.name])
                for vocabulary in config.domains.vocabularies
                if vocabulary.name in in_use
            ],
        ),
    )  # fmt: skip
    return replace(blueprint, config=config, tokenizers=tokenizers, contents=contents, dense=dense)


def _with_tokens(content: DomainContent, old_ids_V: np.ndarray) -> DomainContent:
    table = content.table
    return DomainContent(
        replace(table, experts_LV=np.ascontiguousarray(table.experts_LV[:, old_ids_V])), content.expert
    )
