"""A tiny trained run whose checkpoint the tests change, and what a checkpoint's model computes."""

import shutil
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
    """The run folder of a short training from the prepared tokenizer, data and table."""
    shutil.copytree(Path(tiny_overrides["training.output_dir"]) / "prepared", parent / name)
    where = {"training.output_dir": str(parent), "training.run_name": name, "lr_scheduler.learning_rate": "1e-2"}
    config = load_config(None, tiny_overrides | where | overrides)
    set_device(config)
    train(open_run(config), say=lambda text: None)
    return parent / name


@pytest.fixture(scope="package")
def trained(tiny_overrides, tmp_path_factory):
    """A run with Adam moments, and step counts that differ."""
    return train_tiny(tiny_overrides, tmp_path_factory.mktemp("trained"), "run")


@pytest.fixture(scope="package")
def dense(tiny_overrides, tmp_path_factory):
    """The same without experts."""
    return train_tiny(tiny_overrides, tmp_path_factory.mktemp("dense"), "run", **{"model.rre_layers": "0"})


@pytest.fixture(scope="package")
def shards(trained):
    return TokenShards.open(trained / "data")


def logits_of(folder, shards, domain_names, tokens=None):
    """float32 [domains, B·S, V]: a checkpoint's logits on held-out text of some of its domains.

    Args:
        tokens: int32 id → id here, where the checkpoint has another vocabulary than the shards.
    """
    reader = CheckpointReader(folder)
    model = load_model(reader)
    lower, upper = model.decoder.lower, model.decoder.upper

    @ms.jit
    def forward(slot, rows_BS, tokens_BS, positions_BS, sample_slots_B, domain_slots_B, tables, *slabs):
        x_TH, _ = upper(lower(rows_BS, positions_BS), tokens_BS, positions_BS, domain_slots_B, tables, slabs)
        return upper.logits(x_TH, slot, sample_slots_B)

    found = []
    ids = {domain.name: index for index, domain in enumerate(model.domains)}
    for name in domain_names:
        batch = next(iter(heldout_batches(shards, name, model.config, 4)))
        tokens_BS = batch.tokens_BS if tokens is None else np.ascontiguousarray(tokens[batch.tokens_BS])
        plan = model.plan(tokens_BS, (ids[name],), batch.slot_of_sample_B)
        inputs = model.inputs(tokens_BS, batch.positions_BS, plan)
        slabs = [as_tensor(slab) for slab in model.store.lookup(plan.domain_of_slot)]
        found.append(
            forward(
                inputs.slot, inputs.rows_BS, inputs.tokens_BS, inputs.positions_BS, inputs.sample_slots_B,
                inputs.domain_slots_B, inputs.tables_LDV, *slabs,
            ).asnumpy()
        )  # fmt: skip
    return np.stack(found)


@pytest.fixture(scope="package")
def logits(shards):
    """logits(folder, domain names, tokens) → what its model computes; see `logits_of`."""
    return lambda folder, names, tokens=None: logits_of(folder, shards, names, tokens)


@pytest.fixture(scope="package")
def full_logits(trained, logits):
    """domain → logits of the trained model itself."""
    names = ("bilingual", "zh", "en", "code")
    return dict(zip(names, logits(trained, names), strict=True))
