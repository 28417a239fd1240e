"""Export of a one-domain model as plain safetensors with a config.json, for programs other than mindpangu.

Its experts need no domain and no router: one table per RRE layer maps a token id to its expert. Names and layouts are
those of the hash layers in DeepSeek-V4's checkpoints: `layers.{i}.ffn.gate.tid2eid`, int64 [vocabulary, 1], and the
experts `layers.{i}.ffn.experts.{e}.w1` (up) and `.w2` (down), matrices as [out, in]. With one expert per token and
normalized weights, a gate of zeros gives that expert the weight 1. Attention is PanGu-α's, and the last layer is the
query layer.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mindpangu.checkpoint.dense import DenseFiles
from mindpangu.checkpoint.tensor_file import TensorInfo, chunks_of, encode_stream
from mindpangu.config import require_pangu_alpha
from mindpangu.errors import CheckpointError
from mindpangu.files import write_durably
from mindpangu.lifecycle.blueprint import WORD_EMBEDDING, Blueprint, NewExpert, Origin
from mindpangu.lifecycle.domains import rre_block
from mindpangu.lifecycle.output import new_folder
from mindpangu.model.initialization import expert_shapes
from mindpangu.model.vocabularies import Vocabularies

FORMAT_VERSION = 1

Tensors = Iterator[tuple[str, TensorInfo, Callable[[], np.ndarray]]]
"""(name, dtype and shape, function that reads the values) of every exported tensor."""

_F32 = np.dtype(np.float32)
_I64 = np.dtype(np.int64)
_NETWORK = {"up": "w1", "down": "w2"}
_MATRICES = {
    "attention.query": "attn.wq",
    "attention.key": "attn.wk",
    "attention.value": "attn.wv",
    "attention.output": "attn.wo",
    "ffn.up": "ffn.w1",
    "ffn.down": "ffn.w2",
}
_BLOCK = {
    "attention_norm.gamma": "attn_norm.weight",
    "attention_norm.beta": "attn_norm.bias",
    "ffn_norm.gamma": "ffn_norm.weight",
    "ffn_norm.beta": "ffn_norm.bias",
    **{f"{ours}.weight": f"{theirs}.weight" for ours, theirs in _MATRICES.items()},
    **{f"{ours}.bias": f"{theirs}.bias" for ours, theirs in _MATRICES.items()},
}
_OUTSIDE_BLOCKS = {
    "word_embedding": "embed.weight",
    "position_embedding": "position_embed.weight",
    "query_embedding": "query_embed.weight",
    "final_norm.gamma": "norm.weight",
    "final_norm.beta": "norm.bias",
}


def export(blueprint: Blueprint, out: Path) -> None:
    """Writes `model.safetensors`, `config.json` and `tokenizer.model` of a one-domain model.

    Holds one tensor in memory at a time.

    Raises:
        CheckpointError: the model has several domains, or `out` cannot be created (`new_folder`).
        ConfigError: the architecture is not PanGu-α's.
    """
    require_pangu_alpha(blueprint.config, "an export")
    if len(blueprint.domains) != 1:
        names = ", ".join(domain.name for domain in blueprint.domains)
        raise CheckpointError(f"an export holds exactly one domain; this model has {names}. Give one with --domains")
    (domain,) = blueprint.domains
    with new_folder(out) as folder:
        infos = {}
        readers = {}
        for name, info, read in _tensors(blueprint):
            infos[name] = info
            readers[name] = read
        with tqdm(total=len(infos), unit="tensor", desc="export", disable=None) as bar:

            def chunks(name: str) -> Iterator[memoryview]:
                bar.update()
                return chunks_of(readers[name]())

            write_durably(folder / "model.safetensors", encode_stream(infos, {"format": "pt"}, chunks))
        write_durably(folder / "tokenizer.model", blueprint.tokenizer_of(domain).model_bytes)
        write_durably(folder / "config.json", (json.dumps(_config(blueprint), indent=2) + "\n").encode())


def _tensors(blueprint: Blueprint) -> Tensors:
    config = blueprint.config
    files = DenseFiles(blueprint.dense.reader, blueprint.dense.reader.config())
    changes = blueprint.dense.changes
    first, size = _vocabulary_rows(blueprint)
    for ours in sorted(files.shapes):
        name = _dense_name(ours, config.model.num_layers)
        if name is None:
            continue
        is_transposed = name.startswith("layers.") and len(files.shapes[ours]) == 2
        shape = changes[ours].shape if ours in changes else files.shapes[ours]
        if is_transposed:
            shape = shape[::-1]
        elif ours == WORD_EMBEDDING:
            shape = (size, shape[1])

        def read(ours: str = ours, is_transposed: bool = is_transposed) -> np.ndarray:
            values = files.read(ours)
            values = changes[ours].apply(values, False) if ours in changes else values
            if ours == WORD_EMBEDDING:
                return values[first : first + size]
            return values.T if is_transposed else values

        yield name, TensorInfo(_F32, shape), read
    if blueprint.contents:
        for layer in range(config.model.rre_layers):
            yield from _rre_layer(blueprint, layer)


def _rre_layer(blueprint: Blueprint, layer: int) -> Tensors:
    config = blueprint.config
    (domain,) = blueprint.domains
    content = blueprint.contents[domain.name]
    shapes = expert_shapes(config)
    prefix = f"layers.{_layer_index(rre_block(config, layer), config.model.num_layers)}.ffn"
    experts_V = content.table.experts_LV[layer]
    gate_EH = np.zeros((domain.num_experts, config.model.hidden_size), np.float32)
    yield f"{prefix}.gate.tid2eid", TensorInfo(_I64, (len(experts_V), 1)), lambda: experts_V.astype(np.int64)[:, None]
    yield f"{prefix}.gate.weight", TensorInfo(_F32, gate_EH.shape), lambda: gate_EH
    for index in range(domain.num_experts):
        read = _expert_reader(content.expert(layer, index), shapes)
        for ours, theirs in _NETWORK.items():
            name = f"{prefix}.experts.{index}.{theirs}"
            yield f"{name}.weight", TensorInfo(_F32, shapes[ours][::-1]), partial(read, ours)
            yield f"{name}.bias", TensorInfo(_F32, shapes[f"{ours}_bias"]), partial(read, f"{ours}_bias")


def _expert_reader(source: Origin | NewExpert, shapes: Mapping[str, tuple[int, ...]]) -> Callable[[str], np.ndarray]:
    """Returns a function from a tensor's name to its exported values. Opens the expert's file once."""

    @cache
    def reader() -> Callable[[str], np.ndarray]:
        return source.make().__getitem__ if isinstance(source, NewExpert) else source.open(shapes).read

    return lambda tensor: reader()(tensor).T


def _dense_name(ours: str, num_layers: int) -> str | None:
    """Returns the exported name of a dense parameter, or None for one that is not exported, e.g. a moment."""
    if ours in _OUTSIDE_BLOCKS:
        return _OUTSIDE_BLOCKS[ours]
    for name, theirs in _BLOCK.items():
        block = ours.removesuffix(f".{name}")
        if block != ours and (block == "query_layer" or block.startswith("blocks.")):
            return f"layers.{_layer_index(block, num_layers)}.{theirs}"
    return None


def _vocabulary_rows(blueprint: Blueprint) -> tuple[int, int]:
    """Returns the first row and the number of rows of the domain's vocabulary; token ids are local to it."""
    vocabularies = Vocabularies.build(blueprint.config, blueprint.domains)
    vocabulary = vocabularies.vocabulary_of_domain[0]
    return vocabularies.starts[vocabulary], vocabularies.sizes[vocabulary]


def _layer_index(block: str, num_layers: int) -> int:
    return num_layers - 1 if block == "query_layer" else int(block.removeprefix("blocks."))


def _config(blueprint: Blueprint) -> dict[str, Any]:
    model = blueprint.config.model
    (domain,) = blueprint.domains
    return {
        "model_type": "pangu_sigma",
        "format_version": FORMAT_VERSION,
        "vocab_size": _vocabulary_rows(blueprint)[1],
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "max_position_embeddings": model.seq_length,
        "layer_norm_eps": model.layernorm_epsilon,
        "hidden_act": "fast_gelu",
        "query_layer": model.num_layers - 1,
        "hash_layers": [model.num_layers - model.rre_layers + layer for layer in range(model.rre_layers)],
        "n_routed_experts": domain.num_experts if model.rre_layers else 0,
        "num_experts_per_tok": 1,
        "norm_topk_prob": True,
        "tie_word_embeddings": True,
        "domain": domain.name,
        "control_tokens": list(domain.control_tokens),
        "torch_dtype": "float32",
    }
