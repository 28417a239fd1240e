"""Conversion in both directions, one tensor in memory at a time, whatever the size of the model."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindpangu.checkpoint import CheckpointReader, CheckpointWriter
from mindpangu.checkpoint.dense import DenseFiles, dense_header
from mindpangu.checkpoint.tensor_file import TensorInfo, chunks_of, encode_stream
from mindpangu.config import Config, require_pangu_alpha, to_yaml
from mindpangu.domains import MAIN_VOCABULARY
from mindpangu.errors import CheckpointError
from mindpangu.files import write_durably
from mindpangu.lifecycle.build import write_state
from mindpangu.lifecycle.output import locked_output, new_folder, require_free
from mindpangu.lifecycle.pangu_alpha.checks import require_model, require_tensors, require_tokenizer
from mindpangu.lifecycle.pangu_alpha.mindspore_file import encode_tensor
from mindpangu.lifecycle.pangu_alpha.source import PanguAlphaSource
from mindpangu.lifecycle.pangu_alpha.weights import (
    SEPARATE_FILES,
    Weight,
    is_training_state,
    weights_of,
)
from mindpangu.tokenizer import Tokenizer

CHECKPOINT_FILE = "pangu_alpha.ckpt"
TOKENIZER_FILE = "vocab.model"


def from_pangu_alpha(
    path: Path, strategy: Path | None, config: Config, tokenizer: Path, out: Path
) -> tuple[Path, list[str]]:
    """Converts a release of PanGu-α to a dense checkpoint, with a progress bar on a terminal.

    Args:
        path: its .ckpt file, or the folder of a set with one file per rank. Embedding tables in .npy files next to it
            are read as well.
        strategy: the strategy file of a set.
        config: configuration of the model. Sizes must agree with the tensors; num_heads, layernorm_epsilon and
            data.eod_reset cannot be checked.
        tokenizer: the sentencepiece model that the release was trained with.
        out: folder for the checkpoint.

    Returns:
        The checkpoint's folder, and the names of skipped tensors, which belong to the training, not to the model.

    Raises:
        CheckpointError: tensors are missing, unknown, or of other shapes; a file cannot be read; or `out` is not free
            (`require_free`).
        TokenizerError: the tokenizer cannot be used.
    """
    require_free(out)
    vocabulary = Tokenizer.load(tokenizer, follow_link=True, given_by="--tokenizer")
    source = PanguAlphaSource(path, strategy)
    require_model(source, config)
    weights = {weight.ours: weight for weight in weights_of(config)}
    needed = {weight.theirs: weight.their_shape for weight in weights.values()}
    require_tensors(path, needed, {name: source.shape(name) for name in source.names})
    require_tokenizer(vocabulary, tokenizer, config)
    tensors = {name: TensorInfo(np.dtype(np.float32), weight.shape) for name, weight in weights.items()}
    made_by = {"verb": "convert", "from": str(path), "strategy": None if strategy is None else str(strategy)}
    with locked_output(out), CheckpointWriter(out, step=0) as writer, _progress(len(weights)) as bar:

        def converted(name: str) -> Iterator[memoryview]:
            yield from chunks_of(_to_ours(source, weights[name]))
            bar.update()

        writer.require_space(sum(info.num_bytes for info in tensors.values()))
        writer.write("config.yaml", to_yaml(config).encode())
        write_state(writer, {}, made_by)
        writer.write(f"tokenizer/{MAIN_VOCABULARY}.model", vocabulary.model_bytes)
        writer.write("dense_00000_of_00001.safetensors", encode_stream(tensors, dense_header({}), converted))
    return writer.folder, source.skipped


def to_pangu_alpha(reader: CheckpointReader, out: Path, dtype: str = "fp32", separate_tables: bool = False) -> Path:
    """Writes a dense model as PanGu-α's .ckpt file, with its tokenizer, into a new folder.

    Args:
        dtype: "fp32", which is lossless, or "fp16".
        separate_tables: write the three embedding tables as .npy files, as in the first releases.

    Returns:
        The path of the .ckpt file.

    Raises:
        CheckpointError: the model is sparse, tensors are missing or unknown, a number exceeds fp16, or `out` cannot be
            created (`new_folder`).
    """
    config = reader.config()
    if config.model.rre_layers:
        raise CheckpointError(
            f"{reader.folder} is sparse (model.rre_layers {config.model.rre_layers}); PanGu-α's published "
            "format has no sparse models, so only dense ones can be converted to it"
        )
    require_pangu_alpha(config, "PanGu-α's format")
    if config.domains.vocabularies:
        raise CheckpointError(f"{reader.folder} has several vocabularies; PanGu-α's format has one")
    dense = DenseFiles(reader)
    weights = list(weights_of(config))
    found = {name: shape for name, shape in dense.shapes.items() if not is_training_state(name)}
    require_tensors(reader.folder, {weight.ours: weight.shape for weight in weights}, found)
    number_format = np.dtype({"fp32": np.float32, "fp16": np.float16}[dtype])
    tables = SEPARATE_FILES if separate_tables else {}
    with new_folder(out) as folder:

        def encoded() -> Iterator[bytes | memoryview]:
            for weight in weights:
                values = _as_number_format(weight, dense.read(weight.ours), number_format)
                if weight.theirs in tables:
                    _save_table(folder / tables[weight.theirs], values)
                else:
                    yield from encode_tensor(weight.theirs, values)
                bar.update()

        with _progress(len(weights)) as bar:
            write_durably(folder / CHECKPOINT_FILE, encoded())
        write_durably(folder / TOKENIZER_FILE, reader.read(f"tokenizer/{MAIN_VOCABULARY}.model"))
    return out / CHECKPOINT_FILE


def _progress(num_tensors: int) -> tqdm:
    return tqdm(total=num_tensors, unit="tensor", desc="convert", disable=None)


def _to_ours(source: PanguAlphaSource, weight: Weight) -> np.ndarray:
    values = source.read(weight.theirs)
    if values.dtype not in (np.float16, np.float32):
        raise CheckpointError(f"{source.path}: {weight.theirs} is {values.dtype}; expected float16 or float32")
    return np.ascontiguousarray(weight.swap(values), np.float32)


def _as_number_format(weight: Weight, values: np.ndarray, number_format: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(weight.swap(values), number_format)
    if not np.isfinite(result).all() and np.isfinite(values).all():
        raise CheckpointError(f"{weight.ours} has numbers up to {np.abs(values).max():.6g}, beyond fp16; write fp32")
    return result


def _save_table(path: Path, values: np.ndarray) -> None:
    with open(path, "xb") as file:  # a path would get the suffix .npy; `new_folder` makes the file durable
        np.save(file, values)
