"""Small dense models with random weights, as cells and as checkpoints, and batches for them."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from mindpangu.checkpoint import CheckpointReader, CheckpointWriter
from mindpangu.config import load_config, to_yaml
from mindpangu.data.batch import Batch
from mindpangu.domains import build_domains
from mindpangu.language_model import DenseTensors
from mindpangu.model.coupling import Kept, Units, unit_shapes
from mindpangu.model.decoder import Decoder
from mindpangu.model.vocabularies import Vocabularies
from mindpangu.tiny.inheritance.masked_loss import MaskedLoss
from mindpangu.train.run import set_device

SIZES = {
    "model.num_layers": "4",
    "model.rre_layers": "0",
    "model.hidden_size": "24",
    "model.ffn_hidden_size": "20",
    "model.num_heads": "4",
    "model.seq_length": "7",
    "model.vocab_size": "420",
    "model.init_std": "0.2",
    "model.layernorm_epsilon": "0.01",
}
CHILD = {
    "model.num_layers": "3",
    "model.hidden_size": "12",
    "model.ffn_hidden_size": "9",
    "model.num_heads": "2",
}


class SmallModel:
    """A model with noise on every parameter, so that each parameter affects the result."""

    def __init__(self, seed=0, **changes):
        self.overrides = SIZES | {key.replace("__", "."): value for key, value in changes.items()}
        self.config = load_config(None, self.overrides)
        self.model = self.config.model
        set_device(self.config)
        self.vocabularies = Vocabularies.build(self.config, build_domains(self.config))
        self.decoder = Decoder(self.config, self.vocabularies)
        rng = np.random.default_rng(seed)
        for parameter in self.decoder.parameters.values():
            noise = 0.1 * rng.standard_normal(parameter.shape)
            parameter.set_data(Tensor((parameter.asnumpy() + noise).astype(np.float32)))

    @property
    def weights(self):
        return {name: parameter.asnumpy() for name, parameter in self.decoder.parameters.items()}

    def child(self, **changes):
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        return load_config(None, self.overrides | CHILD | changes)

    def batch(self, seed=0, size=2):
        rng = np.random.default_rng(seed)
        length = self.model.seq_length
        tokens = rng.integers(0, self.model.vocab_size, (size, length + 1)).astype(np.int32)
        return Batch(
            tokens_BS=np.ascontiguousarray(tokens[:, :-1]),
            targets_BS=np.ascontiguousarray(tokens[:, 1:]),
            positions_BS=np.tile(np.arange(length, dtype=np.int32), (size, 1)),
            loss_mask_BS=np.ones((size, length), np.float32),
            domain_of_slot=(0,),
            slot_of_sample_B=np.zeros(size, np.int32),
            sample_ids_B2=np.zeros((size, 2), np.int64),
        )

    def loss(self, *batches):
        return MaskedLoss(self.config, self.decoder, self.vocabularies, batches or (self.batch(),))

    def random_kept(self, child, layers=(0, 1, 3), seed=0):
        """Returns the layers to keep with randomly chosen units, different ones in every layer."""
        rng = np.random.default_rng(seed)
        sizes = {kind: shape[-1] for kind, shape in unit_shapes(child.model).items()}
        indices = {
            kind: np.sort(rng.random(shape).argsort(-1)[..., : sizes[kind]], -1)
            for kind, shape in unit_shapes(self.model).items()
        }
        return Kept(layers, Units(**indices))

    def save(self, folder, tokenizer):
        """Writes a checkpoint with moments, as a training would; returns its reader."""
        arrays = dict(self.weights)
        for moment in ("adam_m.", "adam_v."):
            arrays |= {moment + name: values * 0 for name, values in self.weights.items()}
        with CheckpointWriter(folder, 5) as writer:
            writer.write("config.yaml", to_yaml(self.config).encode())
            writer.write("tokenizer/main.model", tokenizer.read_bytes())
            parts = {name: self.decoder.slices[name.removeprefix("adam_m.").removeprefix("adam_v.")] for name in arrays}
            writer.write("dense_00000_of_00001.safetensors", DenseTensors(arrays, parts).encode())
            writer.write(
                "state.json",
                json.dumps({"step": 5, "updates": 5, "loader": None, "loaded": None, "digests": {}}).encode(),
            )
        return CheckpointReader(folder)


@pytest.fixture(scope="session")
def small():
    """Makes models: small(**changes of the configuration) → SmallModel."""
    return SmallModel


@pytest.fixture(scope="session")
def tokenizer_file(tiny_overrides):
    return Path(tiny_overrides["training.output_dir"]) / "prepared" / "tokenizer" / "main.model"


@pytest.fixture(scope="session")
def models(pangu_pi):
    """Model name → changes of the configuration."""
    pangu_pi = pangu_pi | {"model.shortcut_reduction": "3"}
    return {
        "pangu_pi": pangu_pi,
        "pangu_alpha": {},
        "pangu_alpha_with_shortcut_and_series": {"model.shortcut_reduction": "3", "model.series_terms": "2"},
        "pangu_pi_with_layernorm_biases_and_tied_head": pangu_pi
        | {"model.norm": "layernorm", "model.biases": "true", "model.tied_head": "true"},
        "pangu_pi_with_learned_positions_and_gelu": pangu_pi
        | {"model.position": "learned", "model.activation": "fast_gelu", "model.series_terms": "0"},
    }


@pytest.fixture(scope="session")
def compiled(models):
    """Makes compiled models: compiled(name) → (model, loss over two batches), shared by all tests. Read-only."""

    @functools.cache
    def compile_model(name):
        model = SmallModel(**models[name])
        return model, model.loss(model.batch(), model.batch(1))

    return compile_model
