"""Pruning a dense model to a smaller one: keeping some of its layers, channels, heads and neurons (`model.coupling`).

The child computes what the parent does with everything else masked, except that norms average over fewer channels.
`tiny.inheritance` decides which units to keep.
"""

from functools import partial
from typing import Any

import numpy as np

from mindpangu.checkpoint.dense import DenseFiles
from mindpangu.config import ARCHITECTURE, Config
from mindpangu.domains import build_domains
from mindpangu.errors import CheckpointError
from mindpangu.lifecycle.blueprint import Blueprint, DenseChange, DenseContent
from mindpangu.model.coupling import Kept, layer_and_units, layer_name
from mindpangu.model.vocabularies import Vocabularies

_SMALLER = ("num_layers", "hidden_size", "ffn_hidden_size", "num_heads", "seq_length")
_EQUAL = (*ARCHITECTURE, "rope_theta", "layernorm_epsilon")


def prune(parent: Blueprint, config: Config, kept: Kept) -> Blueprint:
    """Returns the child of a dense model, without Adam's moments.

    Args:
        config: configuration of the child; see `require_child`.
        kept: the layers and units to keep, as many as the child has.

    Raises:
        CheckpointError: see `require_child`.
    """
    require_child(parent, config)
    model = parent.config.model
    reader = parent.dense.reader
    head_size = model.hidden_size // model.num_heads
    changes = {}
    dropped = set()
    renamed = {}
    for name, shape in DenseFiles(reader, reader.config()).shapes.items():
        if name.startswith("adam_"):
            continue
        layer, axes = layer_and_units(model, name)
        if layer is not None and layer not in kept.layers:
            dropped.add(name)
            continue
        indices = [
            np.arange(size) if kind is None else kept.indices(kind, layer, head_size)
            for kind, size in zip(axes, shape, strict=True)
        ]
        if name in ("position_embedding", "query_embedding"):
            indices[0] = indices[0][: config.model.seq_length]
        changes[name] = DenseChange(tuple(map(len, indices)), partial(_take, indices))
        if layer is not None:
            suffix = name.removeprefix(layer_name(model, layer))
            renamed[name] = layer_name(config.model, kept.layers.index(layer)) + suffix
    dense = DenseContent(reader, changes, frozenset(dropped), renamed)
    return Blueprint(config, parent.tokenizers, {}, dense, parent.step, {}, with_moments=False)


def require_child(parent: Blueprint, config: Config) -> None:
    """Raises CheckpointError unless a model of `config` can be cut out of the parent.

    Both must be dense with the same architecture, vocabulary and head size, and nothing may be larger than in the
    parent.
    """
    folder = parent.dense.reader.folder
    ours = config.model
    theirs = parent.config.model
    if parent.contents:
        raise CheckpointError(
            f"{folder} is sparse (model.rre_layers {theirs.rre_layers}); only dense models inherit parameters, and "
            "only from dense models"
        )
    if ours.rre_layers:
        raise CheckpointError(
            f"model.rre_layers of the child is {ours.rre_layers}; a child of {folder} must be dense too: give "
            "--model.rre_layers 0. `mindpangu upcycle` turns a dense model into a sparse one"
        )
    different = {key: (getattr(ours, key), getattr(theirs, key)) for key in _EQUAL}
    different = {key: values for key, values in different.items() if values[0] != values[1]}
    if different:
        raise CheckpointError(f"a child of {folder} must have its architecture: {_listing(different)}")
    larger = {key: (getattr(ours, key), getattr(theirs, key)) for key in _SMALLER}
    larger = {key: values for key, values in larger.items() if values[0] > values[1]}
    if larger:
        raise CheckpointError(f"a child of {folder} must not be larger than it: {_listing(larger)}")
    head_size = theirs.hidden_size // theirs.num_heads
    if ours.hidden_size != ours.num_heads * head_size:
        raise CheckpointError(
            f"a child of {folder} keeps complete heads of {head_size} channels: with model.num_heads "
            f"{ours.num_heads}, model.hidden_size must be {ours.num_heads * head_size}, not {ours.hidden_size}"
        )
    vocabularies = Vocabularies.build(config, build_domains(config))
    saved = Vocabularies.build(parent.config, parent.domains)
    if (vocabularies.names, vocabularies.sizes) != (saved.names, saved.sizes):
        raise CheckpointError(
            f"a child of {folder} must have its vocabulary: the vocabularies {saved.names} have {saved.sizes} rows "
            f"there, {vocabularies.names} {vocabularies.sizes} here (model.vocab_size). `mindpangu tiny tokenizer` "
            "makes a vocabulary smaller"
        )


def _listing(differences: dict[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"model.{key} is {there} there, {here} here" for key, (here, there) in differences.items())


def _take(indices: list[np.ndarray], values: np.ndarray, is_moment: bool) -> np.ndarray:
    return np.ascontiguousarray(values[np.ix_(*indices)])
