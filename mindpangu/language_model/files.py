"""A LanguageModel into a checkpoint and back. Which file holds what is listed in `checkpoint/__init__.py`."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mindspore import Parameter, Tensor
from safetensors.numpy import save as encode_tensors

from mindpangu.checkpoint import CheckpointReader, CheckpointWriter, ExpertFile, expert_file_name
from mindpangu.config import to_yaml
from mindpangu.domains import build_domains
from mindpangu.errors import CheckpointError
from mindpangu.experts import SLAB_TENSORS, StoreSnapshot
from mindpangu.language_model.model import LanguageModel
from mindpangu.routing import RoutingTable
from mindpangu.tokenizer import Tokenizer

DENSE_FILE = "dense_00000_of_00001.safetensors"
_WRITERS = 2


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
        same = self.step_counts[where] == step_count
        return bool(same and writer.link(name, self.reader.folder, self.reader.files[name]))


def write_model(
    writer: CheckpointWriter,
    model: LanguageModel,
    dense: Mapping[str, np.ndarray],
    experts: StoreSnapshot,
    previous: SavedExperts | None,
) -> None:
    """Writes all of a model: configuration, tokenizers, tables, dense tensors, experts with their Adam state.

    Of `model` only what never changes is read, so training may go on meanwhile.

    Args:
        dense: dense parameters and their moments, by the name that they get in the file.
        experts: read to its end.
        previous: the checkpoint whose unchanged expert files are linked; None writes all of them.
    """
    changed = []
    for where in model.store.experts():
        layer, domain, index = where
        name = expert_file_name(layer, model.domains[domain].name, index)
        if previous is not None and previous.link(writer, name, where, experts.step_counts[where]):
            experts.release(where)
        else:
            changed.append(where)
    expert_bytes = 3 * 4 * sum(int(np.prod(shape)) for shape in model.store.shapes.values())
    writer.require_space(sum(array.nbytes for array in dense.values()) + expert_bytes * len(changed))
    writer.write("config.yaml", to_yaml(model.config).encode())
    for slot, tokenizer in model.tokenizers.items():
        writer.write(f"tokenizer/{slot}.model", tokenizer.model_bytes)
    if model.table is not None:
        for name, data in model.table.encode().items():
            writer.write(f"routing/{name}", data)
    writer.write(DENSE_FILE, encode_tensors(dict(dense), metadata={"format_version": "1"}))
    with ThreadPoolExecutor(_WRITERS) as pool:
        for _ in pool.map(lambda where: _write_expert(writer, model, experts, where), changed):
            pass


def load_model(reader: CheckpointReader) -> LanguageModel:
    """A model from its checkpoint alone, weights included, Adam state not."""
    config = reader.config()
    domains = build_domains(config)
    slots = [slot.name for slot in config.domains.embedding_slots] or ["main"]
    tokenizers = {}
    for slot in slots:
        reader.read(f"tokenizer/{slot}.model")
        tokenizers[slot] = Tokenizer.load(reader.folder / "tokenizer" / f"{slot}.model")
    table = None
    if config.model.rre_layers:
        for domain in domains:
            reader.read(f"routing/{domain.name}.safetensors")
        table = RoutingTable.load(reader.folder / "routing", [domain.name for domain in domains])
    model = LanguageModel(config, tokenizers, table)
    read_dense(reader, model.decoder.parameters)
    read_experts(reader, model, with_adam=False)
    return model


def read_dense(reader: CheckpointReader, parameters: Mapping[str, Parameter]) -> None:
    """Sets parameters from the dense file.

    Raises:
        CheckpointError: a parameter that the file lacks or that has another shape.
    """
    tensors = reader.tensors(DENSE_FILE)
    for name, parameter in parameters.items():
        if name not in tensors:
            raise CheckpointError(f"{reader.folder / DENSE_FILE} has no tensor {name!r}")
        if tensors[name].shape != parameter.shape:
            raise CheckpointError(
                f"{reader.folder / DENSE_FILE}: {name} has shape {list(tensors[name].shape)}, "
                f"the model needs {list(parameter.shape)}"
            )
        parameter.set_data(Tensor(tensors[name]))


def read_experts(reader: CheckpointReader, model: LanguageModel, with_adam: bool) -> None:
    """Fills the model's expert store.

    Raises:
        CheckpointError: an expert file that is missing, is another expert's, has other shapes, or was trained with
            another routing table or tokenizer than the model's.
    """
    store = model.store

    def use(name: str, data: bytes) -> None:
        path = reader.folder / name
        header, tensors = ExpertFile.decode(path, data)
        where = (header.layer, _domain_id(model, header.domain), header.index)
        expected = _expert_header(model, *where, header.step_count)
        for item in ("layer", "domain", "index", "table", "tokenizer"):
            found, wanted = getattr(header, item), getattr(expected, item)
            if found != wanted:
                raise CheckpointError(f"{path}: its {item} is {found}, this model's is {wanted}; it is refused")
        if header.name != name:
            raise CheckpointError(f"{path} holds the expert that belongs into {header.name}; was it renamed?")
        groups = {"": store.weights, "adam_m.": store.moment1, "adam_v.": store.moment2} if with_adam else {
            "": store.weights
        }  # fmt: skip
        for prefix, group in groups.items():
            _copy_tensors(path, tensors, prefix, group[where[0]][where[1]], header.index)
        if with_adam:
            store.step_counts[where] = header.step_count

    names = [
        expert_file_name(layer, model.domains[domain].name, index) for layer, domain, index in model.store.experts()
    ]
    reader.read_all(names, use)


def _copy_tensors(path: Path, tensors: Mapping, prefix: str, slab: Mapping[str, np.ndarray], index: int) -> None:
    for name in SLAB_TENSORS:
        tensor = tensors.get(prefix + name)
        if tensor is None or tensor.shape != slab[name][index].shape:
            found = "missing" if tensor is None else f"of shape {list(tensor.shape)}"
            raise CheckpointError(f"{path}: {prefix + name} is {found}; needed: {list(slab[name][index].shape)}")
        slab[name][index] = tensor


def _write_expert(
    writer: CheckpointWriter, model: LanguageModel, experts: StoreSnapshot, where: tuple[int, int, int]
) -> None:
    header = _expert_header(model, *where, step_count=int(experts.step_counts[where]))
    with experts.read(where) as tensors:
        data = header.encode(tensors)
    writer.write(header.name, data)


def _expert_header(model: LanguageModel, layer: int, domain: int, index: int, step_count: int) -> ExpertFile:
    return ExpertFile(
        layer=layer,
        domain=model.domains[domain].name,
        index=index,
        step_count=step_count,
        table=model.table.domain_digest(model.domains[domain].name),
        tokenizer=model.tokenizer_of(model.domains[domain]).digest,
    )


def _domain_id(model: LanguageModel, name: str) -> int:
    names = [domain.name for domain in model.domains]
    if name not in names:
        raise CheckpointError(f"an expert of domain {name!r}, which this model does not have ({', '.join(names)})")
    return names.index(name)
