"""A LanguageModel into a checkpoint and back. Which file holds what is listed in `checkpoint/__init__.py`."""

import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from mindspore import Parameter, Tensor
from safetensors.numpy import save as encode_tensors

from mindpangu.checkpoint import CheckpointReader, CheckpointWriter, ExpertFile, expert_file_name
from mindpangu.config import to_yaml
from mindpangu.domains import build_domains
from mindpangu.errors import CheckpointError
from mindpangu.experts import SLAB_TENSORS
from mindpangu.language_model.model import LanguageModel
from mindpangu.routing import RoutingTable
from mindpangu.tokenizer import Tokenizer

DENSE_FILE = "dense_00000_of_00001.safetensors"
_WRITERS = 2


def write_model(writer: CheckpointWriter, model: LanguageModel, moments: Mapping[str, Parameter]) -> None:
    """Writes all of a model: configuration, tokenizers, tables, dense parameters, experts with their Adam state.

    Args:
        moments: Adam moments of the dense parameters, by the name they get in the file.
    """
    writer.require_space(_num_bytes(model, moments))
    writer.write("config.yaml", to_yaml(model.config).encode())
    for slot, tokenizer in model.tokenizers.items():
        writer.write(f"tokenizer/{slot}.model", tokenizer.model_bytes)
    if model.table is not None:
        _write_table(writer, model.table)
    dense = {name: parameter.asnumpy() for name, parameter in {**model.decoder.parameters, **moments}.items()}
    writer.write(DENSE_FILE, encode_tensors(dense, metadata={"format_version": "1"}))
    with ThreadPoolExecutor(_WRITERS) as pool:
        for _ in pool.map(lambda where: _write_expert(writer, model, *where), model.store.experts()):
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
        expected = _expert_header(model, *where)
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


def _write_expert(writer: CheckpointWriter, model: LanguageModel, layer: int, domain: int, index: int) -> None:
    store = model.store
    groups = {"": store.weights, "adam_m.": store.moment1, "adam_v.": store.moment2}
    tensors = {
        prefix + name: group[layer][domain][name][index] for prefix, group in groups.items() for name in SLAB_TENSORS
    }
    header = _expert_header(model, layer, domain, index)
    writer.write(header.name, header.encode(tensors))


def _expert_header(model: LanguageModel, layer: int, domain: int, index: int) -> ExpertFile:
    return ExpertFile(
        layer=layer,
        domain=model.domains[domain].name,
        index=index,
        step_count=int(model.store.step_counts[layer, domain, index]),
        table=model.table.domain_digest(model.domains[domain].name),
        tokenizer=model.tokenizer_of(model.domains[domain]).digest,
    )


def _domain_id(model: LanguageModel, name: str) -> int:
    names = [domain.name for domain in model.domains]
    if name not in names:
        raise CheckpointError(f"an expert of domain {name!r}, which this model does not have ({', '.join(names)})")
    return names.index(name)


def _write_table(writer: CheckpointWriter, table: RoutingTable) -> None:
    with tempfile.TemporaryDirectory(dir=writer.scratch) as folder:
        table.save(Path(folder))
        for path in sorted(Path(folder).iterdir()):
            writer.write(f"routing/{path.name}", path.read_bytes())


def _num_bytes(model: LanguageModel, moments: Mapping[str, Parameter]) -> int:
    def size(parameters: Iterable) -> int:
        return sum(4 * int(np.prod(p.shape)) for p in parameters)

    expert = sum(4 * int(np.prod(shape)) for shape in model.store.shapes.values())
    return size(model.decoder.parameters.values()) + size(moments.values()) + 3 * expert * len(model.store.experts())
