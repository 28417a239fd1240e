"""Whether tensors, names and configuration are of one model; what is not is named."""

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

_MOST_UNUSED_ROWS = 1024


def require_model(source: PanguAlphaSource, config: Config) -> None:
    """Compares a configuration with what the tensors say of the model.

    Raises:
        CheckpointError: it is of another model, or the tensors are not PanGu-α's published form.
    """
    require_pangu_alpha(config, "PanGu-α's format")
    if config.model.rre_layers:
        raise CheckpointError(f"model.rre_layers is {config.model.rre_layers}; PanGu-α is dense: set it to 0")
    if config.domains.vocabularies:
        raise CheckpointError("domains.vocabularies are given; PanGu-α has one vocabulary")
    blocks = {int(match[1]) for name in source.names if (match := re.match(r"backbone\.blocks\.(\d+)\.", name))}
    if blocks and not any(name.startswith(QUERY_LAYER) for name in source.names):
        raise CheckpointError(
            f"{source.path} has no {QUERY_LAYER}: it was saved by pipeline-parallel code, whose last block is the query"
            " layer and whose final LayerNorm stands behind it. That is another model, which is not supported"
        )
    found = {"num_layers": max(blocks, default=-1) + 2}
    for name, keys in (
        (WORD_EMBEDDING, ("vocab_size", "hidden_size")),
        (POSITION_EMBEDDING, ("seq_length", None)),
        (f"{QUERY_LAYER}.output.mapping.bias", ("ffn_hidden_size",)),
    ):
        if name in source.names:
            found |= dict(zip(keys, source.shape(name), strict=False))
    wrong = {key: size for key, size in found.items() if key and getattr(config.model, key) != size}
    if wrong:
        given = ", ".join(f"model.{key} {getattr(config.model, key)}" for key in wrong)
        needed = " ".join(f"--model.{key} {size}" for key, size in wrong.items())
        raise CheckpointError(
            f"the configuration has {given}; the tensors in {source.path} say: {needed}. Give a --config that fits, or "
            "these keys; model.num_heads, which the tensors do not tell, must be right as well"
        )


def require_tokenizer(tokenizer: Tokenizer, path: Path, config: Config) -> None:
    """Raises CheckpointError for a tokenizer of another vocabulary, TokenizerError for one without a control token of
    the configuration's domains."""
    rows = config.model.vocab_size
    # releases for several devices round the table up so that it can be divided
    if not rows - _MOST_UNUSED_ROWS <= tokenizer.vocab_size <= rows:
        raise CheckpointError(
            f"tokenizer {path} has {tokenizer.vocab_size} pieces, but {WORD_EMBEDDING} has {rows} rows; give the "
            "tokenizer that the model was trained with"
        )
    for token in control_tokens_of(build_domains(config)):
        tokenizer.control_id(token)


def require_tensors(path: Path, needed: Shapes, found: Shapes) -> None:
    """Raises CheckpointError for a tensor in `path` that is missing, not used by the model, or of another shape."""
    missing, unknown = sorted(needed.keys() - found.keys()), sorted(found.keys() - needed.keys())
    if missing:
        tables = [SEPARATE_FILES[name] for name in missing if name in SEPARATE_FILES]
        beside = f"; {', '.join(tables)} beside it would do" if tables else ""
        raise CheckpointError(f"{path} has no tensor {_listed(missing)}{beside}")
    if unknown:
        raise CheckpointError(f"{path} has tensors that the model does not use: {_listed(unknown)}")
    for name, shape in needed.items():
        if found[name] != shape:
            raise CheckpointError(f"{path}: {name} has shape {list(found[name])}, the model needs {list(shape)}")


def _listed(names: list[str], at_most: int = 4) -> str:
    return ", ".join(names[:at_most]) + (f" and {len(names) - at_most} more" if len(names) > at_most else "")
