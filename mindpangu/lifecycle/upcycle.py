"""Upcycling a dense model to a sparse one: experts start as copies of their layer's feed-forward network.

PanGu-Σ began as PanGu-α in this way; its paper calls it inheritance. With the same vocabulary and no noise, the child
computes what its parent does. With another vocabulary, embedding rows are matched by the text of their tokens
(`checkpoint.vocabulary`).
"""

from dataclasses import dataclass

import numpy as np

from mindpangu.checkpoint import CheckpointReader
from mindpangu.checkpoint.dense import DenseFiles
from mindpangu.checkpoint.vocabulary import VocabularyMap, random_rows
from mindpangu.config import ARCHITECTURE, Config
from mindpangu.domains import build_domains
from mindpangu.errors import CheckpointError
from mindpangu.language_model import ModelParts
from mindpangu.lifecycle.blueprint import HEAD, WORD_EMBEDDING, Blueprint, DenseChange, DenseContent, DomainContent
from mindpangu.lifecycle.domains import ExpertsOfDense, rre_block
from mindpangu.model.initialization import dense_name, network_tensors
from mindpangu.model.vocabularies import Vocabularies
from mindpangu.tokenizer import Tokenizer


@dataclass(frozen=True)
class UpcycledRows:
    """Numbers of token rows, over all vocabularies, that upcycling copied, averaged, or drew.

    Attributes:
        shared: rows copied from the parent.
        composed: rows that are the mean of several of the parent's rows.
        random: rows drawn at random.
    """

    shared: int
    composed: int
    random: int


def upcycle(
    parent: Blueprint, parts: ModelParts, noise: float = 0.0, new_rows: str = "mean"
) -> tuple[Blueprint, UpcycledRows]:
    """Returns the sparse child of a dense model.

    Args:
        parent: the dense model.
        parts: the child's configuration, tokenizers, and routing table. The configuration has the parent's layers,
            widths, and data.eod_reset, and its own domains, RRE layers, and vocabulary; its sequences may be shorter.
        noise: standard deviation of the noise on each expert's weights, relative to theirs. It makes experts differ
            from the start; later they differ anyway, because they see different tokens.
        new_rows: initial row of a token that the parent lacks: "mean" of the parent's rows that spell its text, or
            "random".

    Returns:
        The child's blueprint, without Adam's moments, and the numbers of copied, averaged and drawn rows.

    Raises:
        CheckpointError: the parent is sparse, or the child would not compute what its parent does.
    """
    reader = parent.dense.reader
    config = parts.config
    if parent.contents:
        raise CheckpointError(f"{reader.folder} is already sparse (model.rre_layers {parent.config.model.rre_layers})")
    _require_shape(reader, config)
    table = parts.table
    assert table is not None, "dense children are refused above"
    changes, rows = _vocabulary(parent, config, parts.tokenizers, new_rows)
    length = config.model.seq_length
    if length < parent.config.model.seq_length:
        cut = DenseChange((length, config.model.hidden_size), lambda values, is_moment: values[:length])
        shapes = DenseFiles(reader, reader.config()).shapes
        changes |= {name: cut for name in ("position_embedding", "query_embedding") if name in shapes}
    networks = {
        f"{rre_block(config, layer)}.ffn.{tensor}"
        for layer in range(config.model.rre_layers)
        for tensor in map(dense_name, network_tensors(config.model))
    }
    contents = {
        domain.name: DomainContent(table.domain(domain.name), ExpertsOfDense(config, reader, domain.name, noise))
        for domain in parts.domains
    }
    dense = DenseContent(reader, changes, frozenset(networks))
    child = Blueprint(config, parts.tokenizers, contents, dense, parent.step, {}, with_moments=False)
    return child, rows


def _require_shape(reader: CheckpointReader, config: Config) -> None:
    parent = reader.config()
    ours = config.model
    theirs = parent.model
    if not ours.rre_layers:
        raise CheckpointError("model.rre_layers of the child is 0; give it RRE layers, e.g. --model.rre_layers 2")
    keys = ["num_layers", "hidden_size", "ffn_hidden_size", "num_heads", "layernorm_epsilon", *ARCHITECTURE]
    keys += ["rope_theta"] if ours.position == "rope" else []
    changed = {
        f"model.{key}": (getattr(ours, key), getattr(theirs, key))
        for key in keys
        if getattr(ours, key) != getattr(theirs, key)
    }
    if config.data.eod_reset != parent.data.eod_reset:
        changed["data.eod_reset"] = (config.data.eod_reset, parent.data.eod_reset)
    if ours.seq_length > theirs.seq_length:
        changed["model.seq_length"] = (ours.seq_length, theirs.seq_length)
    if changed:
        listing = "; ".join(f"{key} is {there} there, {here} here" for key, (here, there) in changed.items())
        raise CheckpointError(
            f"a child of {reader.folder} must compute what its parent does, on sequences that are no longer; "
            f"{listing}. Give it the parent's values"
        )


def _vocabulary(
    parent: Blueprint, config: Config, tokenizers: dict[str, Tokenizer], new_rows: str
) -> tuple[dict[str, DenseChange], UpcycledRows]:
    """Returns the changes to the word embedding and to an untied head, and the row counts."""
    old, *others = parent.tokenizers.values()
    if others:
        raise CheckpointError(
            f"{parent.dense.reader.folder} has {1 + len(others)} vocabularies; only a model with one can be upcycled"
        )
    vocabularies = Vocabularies.build(config, build_domains(config))
    hidden = config.model.hidden_size
    maps = [VocabularyMap.between(old, tokenizers[name], new_rows == "mean") for name in vocabularies.names]
    num_tokens = sum(len(each.sources) for each in maps)
    shared = sum(each.shared for each in maps)
    composed = sum(each.composed for each in maps)
    counts = UpcycledRows(shared, composed, num_tokens - shared - composed)
    same = len(maps) == 1 and old.digest == tokenizers[vocabularies.names[0]].digest
    if same and vocabularies.num_rows == Vocabularies.build(parent.config, parent.domains).num_rows:
        return {}, counts

    def table(stream: str) -> DenseChange:
        def rows(old_VH: np.ndarray, is_moment: bool) -> np.ndarray:
            tables = []
            for mapping, name, size in zip(maps, vocabularies.names, vocabularies.sizes, strict=True):
                drawn_VH = random_rows(config.training.seed, f"{stream}/{name}", size, hidden, config.model.init_std)
                tables.append(mapping.rows(old_VH, size, drawn_VH))
            return np.concatenate(tables)

        return DenseChange((vocabularies.num_rows, hidden), rows)

    tables = (WORD_EMBEDDING,) if config.model.tied_head else (WORD_EMBEDDING, HEAD)
    return {name: table(name) for name in tables}, counts
