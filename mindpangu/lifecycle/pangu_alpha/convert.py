"""Both ways, tensor by tensor: memory stays at one tensor, whatever the size of the model."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from mindpangu.checkpoint import CheckpointReader, CheckpointWriter, latest_iteration
from mindpangu.checkpoint.durable import sync_folder, write_durably
from mindpangu.checkpoint.tensor_file import TensorInfo, chunks_of, encode_stream
from mindpangu.config import Config, to_yaml
from mindpangu.domains import MAIN_SLOT
from mindpangu.errors import CheckpointError
from mindpangu.lifecycle.pangu_alpha.mindspore_file import encode_tensor
from mindpangu.lifecycle.pangu_alpha.source import PanguAlphaSource
from mindpangu.lifecycle.pangu_alpha.weights import (
    POSITION_EMBEDDING,
    QUERY_LAYER,
    SEPARATE_FILES,
    WORD_EMBEDDING,
    Weight,
    weights_of,
)
from mindpangu.lifecycle.saved_dense import SavedDense
from mindpangu.tokenizer import Tokenizer

CHECKPOINT_FILE = "pangu_alpha.ckpt"
TOKENIZER_FILE = "vocab.model"

Progress = Callable[[Iterable], Iterable]


def from_pangu_alpha(
    path: Path, strategy: Path | None, config: Config, tokenizer: Path, out: Path, progress: Progress = iter
) -> tuple[Path, list[str]]:
    """Makes a dense checkpoint of a release of PanGu-α.

    Args:
        path: its .ckpt file, or the folder of a set with a file per rank; tables as .npy lie beside.
        strategy: the strategy file of a set.
        config: of the model. What can be read off the tensors must agree with them; num_heads, layernorm_epsilon and
            data.eod_reset cannot.
        tokenizer: the sentencepiece model that belongs to it.
        out: folder in which the checkpoint is made.
        progress: wraps what takes long: the files that are opened, the tensors that are converted.

    Returns:
        The checkpoint; names of tensors that were left out because they are of the training, not of the model.

    Raises:
        CheckpointError: tensors that are missing, unknown, or of other shapes; files that cannot be read; a checkpoint
            that is there already.
        TokenizerError: a tokenizer that cannot be used.
    """
    if latest_iteration(out) is not None or latest_iteration(out / "checkpoint") is not None:
        raise CheckpointError(f"{out} already has a checkpoint; choose another folder, or remove it")
    vocabulary = Tokenizer.load(tokenizer)
    source = PanguAlphaSource(path, strategy, progress)
    _require_model(source, config)
    weights = list(weights_of(config))
    _require_tensors(source, weights)
    if vocabulary.vocab_size > config.model.vocab_size:
        raise CheckpointError(
            f"tokenizer {tokenizer} has {vocabulary.vocab_size} pieces, but {WORD_EMBEDDING} has "
            f"{config.model.vocab_size} rows; give the tokenizer that the model was trained with"
        )
    tensors = {weight.ours: TensorInfo(np.dtype(np.float32), weight.shape) for weight in weights}
    converted = _converted(source, progress(weights))
    state = {
        "step": 0, "updates": 0, "loader": None, "loaded": None, "digests": {},
        "made_by": {"verb": "convert", "from": str(path), "strategy": None if strategy is None else str(strategy)},
    }  # fmt: skip
    with CheckpointWriter(out, step=0) as writer:
        writer.require_space(sum(info.num_bytes for info in tensors.values()))
        writer.write("config.yaml", to_yaml(config).encode())
        writer.write("state.json", json.dumps(state, indent=1).encode())
        writer.write(f"tokenizer/{MAIN_SLOT}.model", vocabulary.model_bytes)
        dense = encode_stream(tensors, {"format_version": "1"}, lambda name: chunks_of(next(converted)))
        writer.write("dense_00000_of_00001.safetensors", dense)
        next(converted, None)  # there is none; this ends the progress
    return writer.folder, source.skipped


def to_pangu_alpha(
    reader: CheckpointReader, out: Path, dtype: str = "fp32", separate_tables: bool = False, progress: Progress = iter
) -> Path:
    """Writes a dense model as PanGu-α's .ckpt file, with its tokenizer, into a new folder.

    Args:
        dtype: "fp32", which is exact, or "fp16".
        separate_tables: the three embedding tables as .npy files, as in the first releases.

    Returns:
        The .ckpt file.

    Raises:
        CheckpointError: a sparse model, tensors that are missing or unknown, numbers beyond fp16, a folder that exists.
    """
    config = reader.config()
    if config.model.rre_layers:
        raise CheckpointError(
            f"{reader.folder} is sparse (model.rre_layers {config.model.rre_layers}); PanGu-α's format has no public "
            "form of that, so only dense models can be converted to it"
        )
    if config.domains.embedding_slots:
        raise CheckpointError(f"{reader.folder} has embedding slots; PanGu-α's format has one vocabulary")
    if out.exists():
        raise CheckpointError(f"{out} exists; choose another folder, or remove it")
    dense, weights = SavedDense(reader), list(weights_of(config))
    _require_names(reader.folder, {weight.ours for weight in weights}, set(dense.shapes))
    number_format = {"fp32": np.float32, "fp16": np.float16}[dtype]
    tables = SEPARATE_FILES if separate_tables else {}
    scratch = out.with_name(f".{out.name}.writing")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)

        def encoded() -> Iterator[bytes | memoryview]:
            for weight in progress(weights):
                values = _as_number_format(weight, dense.read(weight.ours), number_format)
                if weight.theirs in tables:
                    _save_table(scratch / tables[weight.theirs], values)
                else:
                    yield from encode_tensor(weight.theirs, values)

        write_durably(scratch / CHECKPOINT_FILE, encoded())
        write_durably(scratch / TOKENIZER_FILE, reader.read(f"tokenizer/{MAIN_SLOT}.model"))
        sync_folder(scratch)
        scratch.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out / CHECKPOINT_FILE


def _converted(source: PanguAlphaSource, weights: Iterable[Weight]) -> Iterator[np.ndarray]:
    for weight in weights:
        values = source.read(weight.theirs)
        if values.dtype not in (np.float16, np.float32):
            raise CheckpointError(f"{source.path}: {weight.theirs} is {values.dtype}; expected float16 or float32")
        yield np.ascontiguousarray(weight.swap(values), np.float32)


def _as_number_format(weight: Weight, values: np.ndarray, number_format: type[np.floating]) -> np.ndarray:
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(weight.swap(values), number_format)
    if not np.isfinite(result).all() and np.isfinite(values).all():
        raise CheckpointError(f"{weight.ours} has numbers up to {np.abs(values).max():.6g}, beyond fp16; write fp32")
    return result


def _save_table(path: Path, values: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, values)
        file.flush()
        os.fsync(file.fileno())


def _require_model(source: PanguAlphaSource, config: Config) -> None:
    """Compares the configuration with what the tensors say of the model."""
    if config.model.rre_layers:
        raise CheckpointError(f"model.rre_layers is {config.model.rre_layers}; PanGu-α is dense: set it to 0")
    if config.domains.embedding_slots:
        raise CheckpointError("domains.embedding_slots are given; PanGu-α has one vocabulary")
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


def _require_tensors(source: PanguAlphaSource, weights: list[Weight]) -> None:
    _require_names(source.path, {weight.theirs for weight in weights}, source.names)
    for weight in weights:
        if source.shape(weight.theirs) != weight.their_shape:
            raise CheckpointError(
                f"{source.path}: {weight.theirs} has shape {list(source.shape(weight.theirs))}, "
                f"the model needs {list(weight.their_shape)}"
            )


def _require_names(path: Path, needed: set[str], found: set[str]) -> None:
    missing, unknown = sorted(needed - found), sorted(found - needed)
    if missing:
        tables = [SEPARATE_FILES[name] for name in missing if name in SEPARATE_FILES]
        beside = f"; {', '.join(tables)} beside it would do" if tables else ""
        raise CheckpointError(f"{path} has no tensor {_listed(missing)}{beside}")
    if unknown:
        raise CheckpointError(f"{path} has tensors that the model does not use: {_listed(unknown)}")


def _listed(names: list[str], at_most: int = 4) -> str:
    return ", ".join(names[:at_most]) + (f" and {len(names) - at_most} more" if len(names) > at_most else "")
