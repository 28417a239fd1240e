"""Writing the checkpoint that a blueprint describes.

Memory use stays small: each thread holds one chunk of a file, one changed tensor, or one new expert.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from mindpangu.checkpoint import CheckpointReader, CheckpointWriter, ExpertFile, expert_file_name
from mindpangu.checkpoint.dense import DenseFiles, dense_files, dense_header
from mindpangu.checkpoint.tensor_file import TensorFile, TensorInfo, chunks_of, encode_stream
from mindpangu.config import to_yaml
from mindpangu.errors import CheckpointError
from mindpangu.files import encode_json
from mindpangu.lifecycle.blueprint import MOMENTS, Blueprint, DenseChange, DenseContent, NewExpert, Origin
from mindpangu.lifecycle.output import locked_output
from mindpangu.routing import RoutingTable

_THREADS = min(8, len(os.sched_getaffinity(0)))

Tensor = TypeVar("Tensor")
Work = Callable[[CheckpointWriter], None]


def build(blueprint: Blueprint, out: Path, made_by: Mapping[str, Any], verify: bool = False) -> Path:
    """Writes the checkpoint of a blueprint, with a progress bar on a terminal.

    Unchanged files are hard-linked where the disk allows it, else copied.

    Args:
        out: a folder, created if absent; the checkpoint becomes `out/iteration_…`.
        made_by: the verb and its arguments, for state.json.
        verify: also verify the hashes of unchanged files now. They keep their hashes, so damage would be found later,
            when they are read. Files whose content changes are always verified.

    Returns:
        The checkpoint's folder.

    Raises:
        InUseError: another process is writing to `out`.
        CheckpointError: `out` is not free (`locked_output`), a source file is missing or altered, or the disk is full.
            Nothing is left in `out`.
    """
    with locked_output(out), CheckpointWriter(out, blueprint.step) as writer:
        _write_small_files(writer, blueprint, made_by)
        work = [*_dense_work(blueprint, verify), *_expert_work(blueprint, verify)]
        with (
            ThreadPoolExecutor(_THREADS) as pool,
            tqdm(total=len(work), unit="file", desc="write", disable=None) as bar,
        ):
            for _ in pool.map(lambda write: write(writer), work):
                bar.update()
    return writer.folder


def _write_small_files(writer: CheckpointWriter, blueprint: Blueprint, made_by: Mapping[str, Any]) -> None:
    writer.write("config.yaml", to_yaml(blueprint.config).encode())
    for vocabulary, tokenizer in blueprint.tokenizers.items():
        writer.write(f"tokenizer/{vocabulary}.model", tokenizer.model_bytes)
    if blueprint.contents:
        table = RoutingTable([blueprint.contents[domain.name].table for domain in blueprint.domains])
        for name, data in table.encode().items():
            writer.write(f"routing/{name}", data)
    write_state(writer, blueprint.digests, made_by)


def write_state(writer: CheckpointWriter, digests: Mapping[str, str], made_by: Mapping[str, Any]) -> None:
    """Writes the state of a checkpoint that does not correspond to a step of any training run.

    Args:
        digests: digests of the data that the model was trained on.
        made_by: the verb and its arguments.
    """
    state = {
        "step": writer.step,
        "updates": 0,
        "loader": None,
        "loaded": None,
        "digests": dict(digests),
        "made_by": dict(made_by),
    }
    writer.write("state.json", encode_json(state))


def _expert_work(blueprint: Blueprint, verify: bool) -> Iterator[Work]:
    for domain in blueprint.domains if blueprint.contents else ():
        content = blueprint.contents[domain.name]
        tokenizer = blueprint.tokenizer_of(domain).digest
        for layer in range(blueprint.config.model.rre_layers):
            for index in range(content.table.num_experts):
                source = content.expert(layer, index)
                steps = source.step_count if isinstance(source, NewExpert) else 0
                header = ExpertFile(layer, domain.name, index, steps, content.table.digest, tokenizer)
                if isinstance(source, NewExpert):
                    yield partial(_write_new, header=header, expert=source, with_moments=blueprint.with_moments)
                    continue
                for part in range(source.num_files):
                    yield partial(
                        _write_existing,
                        header=header,
                        origin=source,
                        part=(part, source.num_files),
                        with_moments=blueprint.with_moments,
                        verify=verify,
                    )


def _write_new(writer: CheckpointWriter, header: ExpertFile, expert: NewExpert, with_moments: bool) -> None:
    computed = expert.make()
    tensors = _without_moments(computed)
    if with_moments:
        zeros = {prefix + name: np.zeros_like(values) for prefix in MOMENTS for name, values in tensors.items()}
        tensors = {**zeros, **computed}
    writer.write(header.name, header.encode(tensors))


def _write_existing(
    writer: CheckpointWriter,
    header: ExpertFile,
    origin: Origin,
    part: tuple[int, int],
    with_moments: bool,
    verify: bool,
) -> None:
    """Carries a file over unchanged, or verifies its hash and copies its tensors under a new header.

    If the other experts have moments and this one has none, its moments start from zeros with step count 0.
    """
    reader = origin.reader
    name = expert_file_name(origin.layer, origin.domain, origin.index, part)
    file = TensorFile(reader.require_size(name))
    old = ExpertFile.from_metadata(file.path, file.metadata)
    new = ExpertFile(
        header.layer, header.domain, header.index, old.step_count, header.table, header.tokenizer, shard=part
    )
    tensors = (_with_moments if with_moments else _without_moments)(file.tensors)
    if tensors.keys() - file.tensors.keys():
        new = replace(new, step_count=0)
    if new == old and tensors.keys() == file.tensors.keys():
        _take(writer, reader, name, verify)
        return

    def chunks(tensor: str) -> Iterable[bytes]:
        return file.chunks(tensor) if tensor in file.tensors else [bytes(tensors[tensor].num_bytes)]

    reader.verify(name)
    writer.write(new.name, encode_stream(tensors, new.metadata, chunks))


def _take(writer: CheckpointWriter, reader: CheckpointReader, name: str, verify: bool) -> None:
    """Carries one file over bit for bit."""
    if verify:
        reader.verify(name)
    writer.take(name, reader)


def _dense_work(blueprint: Blueprint, verify: bool) -> Iterable[Work]:
    content = blueprint.dense
    unchanged = not (content.changes or content.dropped or content.renamed)
    if unchanged and blueprint.with_moments:
        return [partial(_take, reader=content.reader, name=name, verify=verify) for name in dense_files(content.reader)]
    return [partial(_write_dense, content=content, with_moments=blueprint.with_moments)]


def _write_dense(writer: CheckpointWriter, content: DenseContent, with_moments: bool) -> None:
    files = DenseFiles(content.reader, content.reader.config())
    old_names = {content.new_name(name): name for name in files.shapes if _parameter(name) not in content.dropped}
    tensors = {}
    for name, old in old_names.items():
        change = _change(content, old)
        shape = files.shapes[old] if change is None else change.shape
        tensors[name] = TensorInfo(np.dtype(np.float32), shape)
    missing = [name for name in (*content.changes, *content.renamed) if content.new_name(name) not in tensors]
    if missing:
        raise CheckpointError(f"{content.reader.folder} has no dense parameter {missing[0]!r}")
    tensors = tensors if with_moments else _without_moments(tensors)

    def chunks(name: str) -> Iterator[memoryview]:
        old = old_names[name]
        values = files.read(old)
        change = _change(content, old)
        if change is not None:
            values = change.apply(values, name.startswith(MOMENTS))
        return chunks_of(values)

    header = dense_header({})
    writer.write("dense_00000_of_00001.safetensors", encode_stream(tensors, header, chunks))


def _change(content: DenseContent, name: str) -> DenseChange | None:
    return content.changes.get(_parameter(name))


def _parameter(name: str) -> str:
    """Returns the name of the parameter that a tensor holds or is a moment of."""
    for prefix in MOMENTS:
        name = name.removeprefix(prefix)
    return name


def _with_moments(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    weights = _without_moments(tensors)
    return dict(tensors) | {prefix + name: info for prefix in MOMENTS for name, info in weights.items()}


def _without_moments(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(MOMENTS)}
