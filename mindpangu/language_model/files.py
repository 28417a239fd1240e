"""Writes a LanguageModel into a checkpoint and reads it back. `checkpoint/__init__.py` lists the files."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from mindspore import Parameter, Tensor
from safetensors.numpy import save as encode_tensors

from mindpangu.checkpoint import (
    CheckpointReader,
    CheckpointWriter,
    ExpertFile,
    expert_file_name,
    shards_of_experts,
)
from mindpangu.checkpoint.dense import dense_files, dense_header, slices_in
from mindpangu.checkpoint.tensor_file import TensorFile
from mindpangu.config import to_yaml
from mindpangu.config.schema import ContextConfig, ExpertsConfig
from mindpangu.errors import CheckpointError
from mindpangu.experts import ExpertStore, StoreSnapshot
from mindpangu.language_model.model import LanguageModel
from mindpangu.language_model.parts import ModelParts, require_header
from mindpangu.parallel.expert_share import ExpertShare
from mindpangu.parallel.sharding import TensorSlice

_THREADS = 2  # number of threads that read or write experts
_STORE_ATTRIBUTE = {"": "weights", "adam_m.": "moment1", "adam_v.": "moment2"}  # by prefix of a tensor's name in a file

ExpertKey = tuple[int, int, int]
"""(RRE layer, domain id, index among the experts of the domain that this rank holds)."""


@dataclass(frozen=True)
class DenseTensors:
    """Dense parameters and their Adam moments on a rank.

    Attributes:
        arrays: name in the file → values that this rank writes.
        slices: name → the slice of the tensor that these values are.
    """

    arrays: Mapping[str, np.ndarray]
    slices: Mapping[str, TensorSlice]

    def encode(self) -> bytes:
        """Encodes the file. Its header describes the slices that are not whole tensors."""
        header = dense_header({name: self.slices[name] for name in self.arrays})
        return encode_tensors(dict(self.arrays), metadata=header)


@dataclass(frozen=True)
class SavedExperts:
    """Experts of a run's latest checkpoint. Those with an unchanged step count need not be written again.

    Attributes:
        reader: the checkpoint.
        step_counts: int64 [L, M, A], the store's step counts when it was saved or resumed from.
    """

    reader: CheckpointReader
    step_counts: np.ndarray

    def link(self, writer: CheckpointWriter, name: str, expert: ExpertKey, step_count: int) -> bool:
        """Links an unchanged expert's file into a new checkpoint. Returns False if it changed or cannot be linked."""
        entry = self.reader.files.get(name)  # None if the experts were divided among another number of ranks
        if entry is None or self.step_counts[expert] != step_count:
            return False
        return writer.link(name, self.reader.folder, entry)


def write_model(
    writer: CheckpointWriter,
    model: LanguageModel,
    dense: DenseTensors,
    experts: StoreSnapshot,
    previous: SavedExperts | None,
) -> None:
    """Writes a rank's share of a model: dense tensors and experts with their Adam state.

    The first rank also writes configuration, tokenizers, and tables. If several ranks hold the same tensors, only one
    writes them. Only constant attributes of `model` are read, so training may continue meanwhile.

    Args:
        dense: the tensors that this rank writes.
        experts: the experts' state; each of its experts is read or released.
        previous: experts of the previous checkpoint, whose unchanged files are linked; None to write all files.
    """
    changed = []
    for expert in model.store.experts():
        written_by_other_rank = model.processes.coordinates.replica > 0
        if written_by_other_rank or (
            previous is not None
            and previous.link(writer, _expert_file(model, expert), expert, experts.step_counts[expert])
        ):
            experts.release(expert)
        else:
            changed.append(expert)
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
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(lambda expert: _write_expert(writer, model, experts, expert), changed):
            pass


def load_model(
    reader: CheckpointReader, context: ContextConfig | None = None, experts: ExpertsConfig | None = None
) -> LanguageModel:
    """Reads a model with its weights, but without Adam state, from a checkpoint.

    Args:
        context, experts: see `ModelParts.from_checkpoint`.
    """
    model = LanguageModel(ModelParts.from_checkpoint(reader, context, experts))
    read_dense(reader, model.decoder.parameters, model.decoder.slices)
    read_experts(reader, model, with_adam=False)
    return model


def read_dense(
    reader: CheckpointReader, parameters: Mapping[str, Parameter], slices: Mapping[str, TensorSlice]
) -> None:
    """Sets parameters from the dense files of a checkpoint, whichever ranks wrote them.

    Reads one tensor at a time, and only tensors that the model has, in the model's shapes.

    Args:
        slices: name → the slice of the tensor that the parameter holds.

    Raises:
        CheckpointError: a parameter is missing from the files or has another shape there.
    """
    values = {name: np.zeros(parameter.shape, np.float32) for name, parameter in parameters.items()}
    missing = {name: value.size for name, value in values.items()}
    found: dict[str, list[TensorSlice]] = {name: [] for name in values}
    for file_name in dense_files(reader):
        file = TensorFile(reader.verify(file_name))
        described = slices_in(file.path, file.metadata)
        for name, info in file.tensors.items():
            if name not in values:
                continue
            saved = described.get(name, TensorSlice(info.shape))
            needed = slices[name].shape
            if saved.shape != needed or saved.local_shape != info.shape or info.dtype != np.float32:
                raise CheckpointError(
                    f"{file.path}: {name} is {info.dtype} of shape {list(saved.shape)}, the model needs float32 of "
                    f"shape {list(needed)}; use a checkpoint of this model"
                )
            missing[name] -= slices[name].copy(values[name], saved, file.read(name))
            found[name].append(saved)
    for name, parameter in parameters.items():
        # if slices overlap, others are missing, though the numbers add up
        if missing[name] or not slices[name].is_covered_by(found[name]):
            raise CheckpointError(f"{reader.folder}: its dense files have no tensor {name!r}, or not all of it")
        parameter.set_data(Tensor(values[name]))


def read_experts(reader: CheckpointReader, model: LanguageModel, with_adam: bool) -> None:
    """Fills the model's expert store, whichever ranks wrote the experts. A thread holds one tensor in memory at a time.

    Raises:
        CheckpointError: an expert file is missing, belongs to another expert, has other shapes, or was trained with
            another routing table or tokenizer than the model's.
    """
    store = model.store
    num_files_of = shards_of_experts(reader.files)
    content_of: dict[str, tuple[ExpertKey, tuple[int, int]]] = {}  # file name → expert, (shard index, number of shards)
    for layer, domain, index in store.experts():
        saved_as = layer, model.domains[domain].name, store.first + index
        num_files = num_files_of.get(saved_as, 1)
        for shard in range(num_files):
            content_of[expert_file_name(*saved_as, (shard, num_files))] = (layer, domain, index), (shard, num_files)

    def read(name: str) -> None:
        expert, shard = content_of[name]
        layer, domain, index = expert
        file = TensorFile(reader.verify(name))
        header = ExpertFile.from_metadata(file.path, file.metadata)
        require_header(file.path, header, _expert_header(model, expert, header.step_count, shard))
        for prefix in _STORE_ATTRIBUTE if with_adam else [""]:
            slab = getattr(store, _STORE_ATTRIBUTE[prefix])[layer][domain]
            _copy_tensors(file, prefix, store, slab, index, shard)
        if with_adam:
            store.step_counts[expert] = header.step_count

    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(read, content_of):
            pass


def _copy_tensors(
    file: TensorFile,
    prefix: str,
    store: ExpertStore,
    slab: Mapping[str, np.ndarray],
    index: int,
    shard: tuple[int, int],
) -> None:
    """Copies those elements of a file's tensors that belong to this rank's slice of the expert."""
    for name in store.tensors:
        own_slice = store.slices[name]
        info = file.tensors.get(prefix + name)
        file_slice = ExpertShare(tensor=shard[0], tensors=shard[1]).tensor_slice(name, own_slice.shape)
        needed = file_slice.local_shape
        if info is None or info.shape != needed or info.dtype != np.float32:
            found = "missing" if info is None else f"{info.dtype} of shape {list(info.shape)}"
            raise CheckpointError(
                f"{file.path}: {prefix + name} is {found}, the model needs float32 of shape {list(needed)}; use a "
                "checkpoint of this model"
            )
        own_slice.copy(slab[name][index], file_slice, file.read(prefix + name))


def _write_expert(writer: CheckpointWriter, model: LanguageModel, experts: StoreSnapshot, expert: ExpertKey) -> None:
    header = _expert_header(model, expert, int(experts.step_counts[expert]), _own_shard(model))
    with experts.read(expert) as tensors:
        data = header.encode(tensors)
    writer.write(header.name, data)


def _own_shard(model: LanguageModel) -> tuple[int, int]:
    """Returns (index, number of shards) of the shard of each expert that this rank holds."""
    return model.store.share.tensor, model.store.share.tensors


def _expert_file(model: LanguageModel, expert: ExpertKey) -> str:
    layer, domain, index = expert
    return expert_file_name(layer, model.domains[domain].name, model.store.first + index, _own_shard(model))


def _expert_header(model: LanguageModel, expert: ExpertKey, step_count: int, shard: tuple[int, int]) -> ExpertFile:
    layer, domain, index = expert
    return model.parts.expert_header(layer, domain, model.store.first + index, shard, step_count)
