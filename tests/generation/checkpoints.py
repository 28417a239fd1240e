"""Checkpoints of models with clearly different scores, and a reference decoding loop without a cache."""

import numpy as np

from mindpangu.checkpoint import CheckpointReader, CheckpointWriter
from mindpangu.config import load_config, to_yaml
from mindpangu.data import prompt_ids
from mindpangu.domains import domain_named
from mindpangu.language_model import DenseTensors
from mindpangu.parallel.expert_share import ExpertShare
from mindpangu.train.run import open_run, set_device


def open_model(overrides, **changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    config = load_config(None, overrides | {"model.init_std": "0.15"} | changes)
    set_device(config)
    model = open_run(config).model
    model.store.initialize()
    return model


def save(model, folder, tensors=1):
    """Saves a checkpoint of a model, each expert in `tensors` files, as ranks of a tensor group write them."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: parameter.asnumpy() for name, parameter in model.decoder.parameters.items()}
    with CheckpointWriter(folder, step=1) as writer:
        writer.write("config.yaml", to_yaml(model.config).encode())
        for vocabulary, tokenizer in model.tokenizers.items():
            writer.write(f"tokenizer/{vocabulary}.model", tokenizer.model_bytes)
        for name, data in model.table.encode().items() if model.table else ():
            writer.write(f"routing/{name}", data)
        writer.write("dense_00000_of_00001.safetensors", DenseTensors(arrays, model.decoder.slices).encode())
        for layer, domain, index in model.store.experts():
            whole = expert(model, layer, domain, index)
            for part in range(tensors):
                share = ExpertShare(tensor=part, tensors=tensors)
                shard = {name: share.tensor_slice(name, tensor.shape).of(tensor) for name, tensor in whole.items()}
                header = model.parts.expert_header(layer, domain, index, (part, tensors))
                writer.write(header.name, header.encode(shard))
    return CheckpointReader(folder)


def expert(model, layer, domain, index):
    return {name: tensor[index] for name, tensor in model.store.weights[layer][domain].items()}


def reference_scores(model, domain_name, ids):
    """Computes the scores of the next token from the whole window, without a cache: float32 [V]."""
    domain_id, domain = domain_named(model.domains, domain_name)
    tokens_BS = np.full((1, model.config.model.seq_length), model.tokenizer_of(domain).pad_id, np.int32)
    tokens_BS[0, : len(ids)] = ids
    return model.next_token_logits(tokens_BS, domain_id, last=len(ids) - 1)[0]


def reference_loop(model, request):
    """Returns greedy token ids, and the gap between the two best scores at each of them."""
    _, domain = domain_named(model.domains, request.domain)
    tokenizer = model.tokenizer_of(domain)
    length = model.config.model.seq_length
    ids = prompt_ids(domain, request.prompt, tokenizer)
    start = 0
    gaps = []
    first = len(ids)
    for _ in range(request.max_new_tokens):
        if len(ids) - start > length:
            start = len(ids) - length // 2
        scores = reference_scores(model, request.domain, ids[start:])[: tokenizer.vocab_size]
        second, best = np.argsort(scores)[-2:]
        gaps.append(float(scores[best] - scores[second]))
        if best == tokenizer.eot_id:
            break
        ids.append(int(best))
    return ids[first:], gaps
