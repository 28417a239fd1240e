"""Checks that tensors, tokenizer and configuration belong to one model. Errors name the mismatch."""

import re
from collections.abc import Mapping
from pathlib import Path

from mindpangu.config import Config, require_pangu_alpha
from mindpangu.domains import build_domains, control_tokens_of
from mindpangu.errors import CheckpointError
from mindpangu.lifecycle.pangu_alpha.source import PanguAlphaSource
from mindpangu.lifecycle.pangu_alpha.weights import POSITION_EMBEDDING, QUERY_LAYER, SEPARATE_FILES, WORD_EMBEDDING
from mindpangu.tokenizer import Tokenizer

Shapes = Mapping[str, tuple[int, ...]]

_MAX_UNUSED_ROWS = 1024


def require_model(source: PanguAlphaSource, config: Config) -> None:
    """Compares a configuration with the sizes of the tensors.

    Raises:
        CheckpointError: the configuration describes another model, or the tensors are not in PanGu-α's published form.
    """
    require_pangu_alpha(config, "PanGu-α's format")
    if config.model.rre_layers:
        raise CheckpointError(f"model.rre_layers is {config.model.rre_layers}; PanGu-α is dense: set it to 0")
    if config.domains.vocabularies:
        raise CheckpointError("domains.vocabularies is given, but PanGu-α has one vocabulary; leave it empty")
    blocks = {int(match[1]) for name in source.names if (match := re.match(r"backbone\.blocks\.(\d+)\.", name))}
    if blocks and not any(name.startswith(QUERY_LAYER) for name in source.names):
        raise CheckpointError(
            f"{source.path} has no {QUERY_LAYER}: it was saved by pipeline-parallel code, whose last block is the query"
            " layer and whose final LayerNorm comes after it. That is another model, which is not supported"
        )
    found = {"num_layers": max(blocks, default=-1) + 2}
    for key, name, axis in (
        ("vocab_size", WORD_EMBEDDING, 0),
        ("hidden_size", WORD_EMBEDDING, 1),
        ("seq_length", POSITION_EMBEDDING, 0),
        ("ffn_hidden_size", f"{QUERY_LAYER}.output.mapping.bias", 0),
    ):
        if name in source.names and axis < len(source.shape(name)):
            found[key] = source.shape(name)[axis]
    wrong = {key: size for key, size in found.items() if getattr(config.model, key) != size}
    if wrong:
        given = ", ".join(f"model.{key} {getattr(config.model, key)}" for key in wrong)
        needed = " ".join(f"--model.{key} {size}" for key, size in wrong.items())
        raise CheckpointError(
            f"the configuration has {given}; the tensors in {source.path} say: {needed}. Give a --config that fits, or "
            "these keys. The tensors do not show model.num_heads, so check that it is right as well"
        )


def require_tokenizer(tokenizer: Tokenizer, path: Path, config: Config) -> None:
    """Checks that a tokenizer fits the configuration.

    Raises:
        CheckpointError: the tokenizer has another vocabulary.
        TokenizerError: the tokenizer lacks a control token of the configuration's domains.
    """
    rows = config.model.vocab_size
    # releases for several devices pad the table so that it can be divided evenly
    if not rows - _MAX_UNUSED_ROWS <= tokenizer.vocab_size <= rows:
        raise CheckpointError(
            f"tokenizer {path} has {tokenizer.vocab_size} pieces, but {WORD_EMBEDDING} has {rows} rows; give the "
            "tokenizer that the model was trained with"
        )
    for token in control_tokens_of(build_domains(config)):
        tokenizer.control_id(token)


def require_tensors(path: Path, needed: Shapes, found: Shapes) -> None:
    """Raises CheckpointError if a tensor in `path` is missing, not used by the model, or of another shape."""
    missing = sorted(needed.keys() - found.keys())
    unknown = sorted(found.keys() - needed.keys())
    if missing:
        tables = [SEPARATE_FILES[name] for name in missing if name in SEPARATE_FILES]
        remedy = f"; put {', '.join(tables)} next to it" if tables else ""
        raise CheckpointError(f"{path} has no tensor {_listing(missing)}{remedy}")
    if unknown:
        raise CheckpointError(f"{path} has tensors that the model does not use: {_listing(unknown)}")
    for name, shape in needed.items():
        if found[name] != shape:
            raise CheckpointError(f"{path}: {name} has shape {list(found[name])}, the model needs {list(shape)}")


def _listing(names: list[str], at_most: int = 4) -> str:
    return ", ".join(names[:at_most]) + (f" and {len(names) - at_most} more" if len(names) > at_most else "")
