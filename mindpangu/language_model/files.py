"""A LanguageModel into a checkpoint and back. Which file holds what is listed in `checkpoint/__init__.py`."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mindspore import Parameter, Tensor
from safetensors.numpy import save as encode_tensors

from mindpangu.checkpoint import (
    CheckpointReader,
    CheckpointWriter,
    ExpertFile,
    expert_file_name,
    read_metadata,
    shards_of_experts,
)
from mindpangu.checkpoint.dense import dense_files, dense_header, parts_in
from mindpangu.checkpoint.reader import decode_tensors
from mindpangu.config import to_yaml
from mindpangu.config.schema import ContextConfig
from mindpangu.errors import CheckpointError
from mindpangu.experts import ExpertStore, StoreSnapshot
from mindpangu.language_model.model import LanguageModel
from mindpangu.language_model.parts import ModelParts, require_header
from mindpangu.parallel.expert_share import ExpertShare
from mindpangu.parallel.sharding import Part

_WRITERS = 2
_GROUPS = {"": "weights", "adam_m.": "moment1", "adam_v.": "moment2"}


@dataclass(frozen=True)
class DenseTensors:
    """Dense parameters and their Adam moments on a rank.

    Attributes:
        arrays: name in the file → values of this rank's part. parts: name → which part of the tensor that is.
    """

    arrays: Mapping[str, np.ndarray]
    parts: Mapping[str, Part]

    def encode(self) -> bytes:
        """As a file. Of tensors that are not whole its header says which part they are."""
        header = dense_header({name: self.parts[name] for name in self.arrays})
        return encode_tensors(dict(self.arrays), metadata=header)


@dataclass(frozen=True)
class SavedExperts:
    """The experts of a run's latest checkpoint. Those whose step count is still the same need not be written again.

    Attributes:
        reader: the checkpoint. step_counts: int64 [L, D, A], the store's when it was saved or resumed from.
    """

    reader: CheckpointReader
    step_counts: np.ndarray

    def link(self, writer: CheckpointWriter, name: str, where: tuple[int, int, int], step_count: int) -> bool:
        """Takes over an unchanged expert's file; False if it changed or cannot be linked."""
        entry = self.reader.files.get(name)  # none if ranks shared the experts otherwise
        same = entry is not None and self.step_counts[where] == step_count
        return bool(same and writer.link(name, self.reader.folder, entry))


def write_model(
    writer: CheckpointWriter,
    model: LanguageModel,
    dense: DenseTensors,
    experts: StoreSnapshot,
    previous: SavedExperts | None,
) -> None:
    """Writes a rank's share of a model: configuration, tokenizers and tables (the first rank), dense tensors, experts
    with their Adam state. What several ranks have alike, one of them writes.

    Of `model` only what never changes is read, so training may go on meanwhile.

    Args:
        dense: what this rank is to write.
        experts: read to its end.
        previous: the checkpoint whose unchanged expert files are linked; None writes all of them.
    """
    changed = []
    for where in model.store.experts():
        name = _expert_file(model, where)
        if model.processes.coordinates.replica or (
            previous is not None and previous.link(writer, name, where, experts.step_counts[where])
        ):
            experts.release(where)
        else:
            changed.append(where)
    expert_bytes = 3 * 4 * sum(int(np.prod(shape)) for shape in model.store.shapes.values())
    writer.require_space(sum(array.nbytes for array in dense.arrays.values()) + expert_bytes * len(changed))
    if writer.rank == 0:
        writer.write("config.yaml", to_yaml(model.config).encode())
        for vocabulary, tokenizer in model.tokenizers.items():
            writer.write(f"tokenizer/{vocabulary}.model", tokenizer.model_bytes)
        if model.table is not None:
            for name, data in model.table.encode().items():
                writer.write(f"routing/{name}", data)
    if dense.arrays:
        writer.write(f"dense_{writer.rank:05d}_of_{writer.ranks:05d}.safetensors", dense.encode())
    with ThreadPoolExecutor(_WRITERS) as pool:
        for _ in pool.map(lambda where: _write_expert(writer, model, experts, where), changed):
            pass


def load_model(reader: CheckpointReader, context: ContextConfig | None = None) -> LanguageModel:
    """A model from its checkpoint alone, weights included, Adam state not. `context`: see `ModelParts.read`."""
    parts = ModelParts.read(reader, context)
    model = LanguageModel(parts.config, parts.tokenizers, parts.table)
    read_dense(reader, model.decoder.parameters, model.decoder.parts)
    read_experts(reader, model, with_adam=False)
    return model


def read_dense(reader: CheckpointReader, parameters: Mapping[str, Parameter], parts: Mapping[str, Part]) -> None:
    """Sets parameters from the dense files of a checkpoint, whichever ranks have written them.

    Args:
        parts: name → which part of the tensor the parameter is.

    Raises:
        CheckpointError: a parameter that the files lack, or that has another shape.
    """
    values = {name: np.zeros(parameter.shape, np.float32) for name, parameter in parameters.items()}
    missing = {name: value.size for name, value in values.items()}
    for file in dense_files(reader):
        data = reader.read(file)
        described = parts_in(reader.folder / file, read_metadata(data))
        for name, tensor in decode_tensors(reader.folder / file, data).items():
            if name not in values:
                continue
            part = described.get(name, Part(tensor.shape))
            if part.shape != parts[name].shape or part.part_shape != tensor.shape:
                raise CheckpointError(
                    f"{reader.folder / file}: {name} has shape {list(part.shape)}, "
                    f"the model needs {list(parts[name].shape)}"
                )
            missing[name] -= parts[name].copy(values[name], part, tensor)
    for name, parameter in parameters.items():
        if missing[name]:
            raise CheckpointError(f"{reader.folder}: its dense files have no tensor {name!r}, or not all of it")
        parameter.set_data(Tensor(values[name]))


def read_experts(reader: CheckpointReader, model: LanguageModel, with_adam: bool) -> None:
    """Fills the model's expert store, whichever ranks have written the experts.

    Raises:
        CheckpointError: an expert file that is missing, is another expert's, has other shapes, or was trained with
            another routing table or tokenizer than the model's.
    """
    store, number_of, where_of = model.store, shards_of_experts(reader.files), {}
    for where in store.experts():
        layer, domain, index = where
        expert = layer, model.domains[domain].name, store.first + index
        number = number_of.get(expert, 1)
        where_of |= {expert_file_name(*expert, (part, number)): (where, (part, number)) for part in range(number)}

    def use(name: str, data: bytes) -> None:
        path, (where, part) = reader.folder / name, where_of[name]
        header, tensors = ExpertFile.decode(path, data)
        expected = _expert_header(model, where, header.step_count, part)
        require_header(path, header, expected)
        for prefix in _GROUPS if with_adam else [""]:
            slab = getattr(store, _GROUPS[prefix])[where[0]][where[1]]
            _copy_tensors(path, tensors, prefix, store, slab, where[2], part)
        if with_adam:
            store.step_counts[where] = header.step_count

    reader.read_all(where_of, use)


def _copy_tensors(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    prefix: str,
    store: ExpertStore,
    slab: Mapping[str, np.ndarray],
    index: int,
    part: tuple[int, int],
) -> None:
    """What a file has of this rank's part of an expert."""
    for name in store.tensors:
        mine, tensor = store.parts[name], tensors.get(prefix + name)
        theirs = ExpertShare(tensor=part[0], tensors=part[1]).part(name, mine.shape)
        if tensor is None or tensor.shape != theirs.part_shape:
            found = "missing" if tensor is None else f"of shape {list(tensor.shape)}"
            raise CheckpointError(f"{path}: {prefix + name} is {found}; needed: {list(theirs.part_shape)}")
        mine.copy(slab[name][index], theirs, tensor)


def _write_expert(
    writer: CheckpointWriter, model: LanguageModel, experts: StoreSnapshot, where: tuple[int, int, int]
) -> None:
    header = _expert_header(model, where, int(experts.step_counts[where]), _own_part(model))
    with experts.read(where) as tensors:
        data = header.encode(tensors)
    writer.write(header.name, data)


def _own_part(model: LanguageModel) -> tuple[int, int]:
    return model.store.share.tensor, model.store.share.tensors


def _expert_file(model: LanguageModel, where: tuple[int, int, int], part: tuple[int, int] | None = None) -> str:
    layer, domain, index = where
    return expert_file_name(layer, model.domains[domain].name, model.store.first + index, part or _own_part(model))


def _expert_header(
    model: LanguageModel, where: tuple[int, int, int], step_count: int, part: tuple[int, int]
) -> ExpertFile:
    layer, domain, index = where
    return model.parts.expert_header(layer, domain, model.store.first + index, part, step_count)
