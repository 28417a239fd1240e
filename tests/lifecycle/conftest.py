"""A tiny trained run whose checkpoint the tests change, and the logits of a checkpoint's model."""

import shutil
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from mindpangu.checkpoint import CheckpointReader
from mindpangu.config import load_config
from mindpangu.data import TokenShards, heldout_batches
from mindpangu.language_model import as_tensor, load_model
from mindpangu.train.run import open_run, set_device, train


def train_tiny(tiny_overrides, parent, name, **overrides):
    """Trains a short run from the prepared tokenizer, data and table; returns its folder."""
    shutil.copytree(Path(tiny_overrides["training.output_dir"]) / "prepared", parent / name)
    changes = {"training.output_dir": str(parent), "training.run_name": name, "lr_scheduler.learning_rate": "1e-2"}
    config = load_config(None, tiny_overrides | changes | overrides)
    set_device(config)
    train(open_run(config), log=lambda text: None)
    return parent / name


@pytest.fixture(scope="package")
def trained(tiny_overrides, tmp_path_factory):
    """A run with Adam moments and different step counts."""
    return train_tiny(tiny_overrides, tmp_path_factory.mktemp("trained"), "run")


@pytest.fixture(scope="package")
def dense(tiny_overrides, tmp_path_factory):
    """The same run without experts."""
    return train_tiny(tiny_overrides, tmp_path_factory.mktemp("dense"), "run", **{"model.rre_layers": "0"})


@pytest.fixture(scope="package")
def shards(trained):
    return TokenShards.open(trained / "data")


class Forward:
    """Computes the logits of a checkpoint's model."""

    def __init__(self, folder):
        self.model = load_model(CheckpointReader(folder))
        lower = self.model.decoder.lower
        upper = self.model.decoder.upper

        @ms.jit
        def forward(
            vocabulary, rows_BS, tokens_BS, positions_BS, vocabulary_of_sample_B, domain_slots_B, tables, *slabs
        ):
            h_TH = lower(rows_BS, positions_BS)
            x_TH, _ = upper(h_TH, positions_BS, (tokens_BS, domain_slots_B, tables, 0, ()), slabs)
            return upper.logits(x_TH, vocabulary, vocabulary_of_sample_B)

        self._forward = forward
        self._ids = {domain.name: index for index, domain in enumerate(self.model.domains)}

    def __call__(self, batch, domain_name, new_ids=None):
        """Returns the logits of a batch, float32 [B·S, V].

        Args:
            new_ids: int32, id in the batch → id in this model, if it has another vocabulary.
        """
        tokens_BS = batch.tokens_BS if new_ids is None else np.ascontiguousarray(new_ids[batch.tokens_BS])
        plan = self.model.planner.plan(replace(batch, tokens_BS=tokens_BS), (self._ids[domain_name],))
        inputs = self.model.inputs(tokens_BS, batch.positions_BS, plan)
        slabs = [as_tensor(slab) for slab in self.model.store.lookup(plan.domain_of_slot)]
        logits = self._forward(
            inputs.vocabulary,
            inputs.rows_BS,
            inputs.tokens_BS,
            inputs.positions_BS,
            inputs.vocabulary_of_sample_B,
            inputs.domain_slots_B,
            inputs.tables_LDV,
            *slabs,
        )
        return logits.asnumpy()


@pytest.fixture(scope="package")
def logits(shards):
    """logits(folder, domain names, new_ids) returns a model's logits on held-out text, [domains, B·S, V]."""

    def compute(folder, domain_names, new_ids=None):
        forward = Forward(folder)
        batches = {name: next(iter(heldout_batches(shards, name, forward.model.config, 4))) for name in domain_names}
        return np.stack([forward(batch, name, new_ids) for name, batch in batches.items()])

    return compute


@pytest.fixture(scope="package")
def full_logits(trained, logits):
    """Domain → logits of the trained model itself."""
    names = ("bilingual", "zh", "en", "code")
    return dict(zip(names, logits(trained, names), strict=True))


def forward_of_export(weights, settings, tokens_BS):
    """Computes PanGu-Σ's forward pass from an export and nothing else: float64 logits [B, S, V]."""
    weights = {name: values.astype(np.float64) for name, values in weights.items()}
    batch, length = tokens_BS.shape
    heads = settings["num_attention_heads"]
    layers = settings["num_hidden_layers"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + settings["layer_norm_eps"])
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def gelu(x):
        return x / (1 + np.exp(-1.702 * np.abs(x))) * np.exp(0.851 * (x - np.abs(x)))

    def split(x):
        return x.reshape(batch, length, heads, -1).transpose(0, 2, 1, 3)

    def network(x, name):
        return linear(gelu(linear(x, f"{name}.w1")), f"{name}.w2")

    x = weights["embed.weight"][tokens_BS] + weights["position_embed.weight"][:length]
    for layer in range(layers):
        name = f"layers.{layer}"
        if layer == settings["query_layer"]:
            x = norm(x, "norm")
        h = norm(x, f"{name}.attn_norm")
        queries = np.tile(weights["query_embed.weight"][:length], (batch, 1, 1)) if layer == layers - 1 else h
        q = split(linear(queries, f"{name}.attn.wq"))
        k = split(linear(h, f"{name}.attn.wk"))
        v = split(linear(h, f"{name}.attn.wv"))
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        x = x + linear(mixed.transpose(0, 2, 1, 3).reshape(batch, length, -1), f"{name}.attn.wo")
        h = norm(x, f"{name}.ffn_norm")
        if layer in settings["hash_layers"]:
            experts = weights[f"{name}.ffn.gate.tid2eid"][tokens_BS, 0].astype(int)
            for expert in range(settings["n_routed_experts"]):
                routed = experts == expert
                x[routed] += network(h[routed], f"{name}.ffn.experts.{expert}")
        else:
            x = x + network(h, f"{name}.ffn")
    return x @ weights["embed.weight"].T
