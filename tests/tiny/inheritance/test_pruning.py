"""A pruned checkpoint equals the masked model, can be trained further, and is refused where it does not fit."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mindpangu.checkpoint import CheckpointReader
from mindpangu.checkpoint.dense import DenseFiles
from mindpangu.config import load_config
from mindpangu.errors import CheckpointError
from mindpangu.language_model import load_model
from mindpangu.lifecycle.blueprint import Blueprint
from mindpangu.lifecycle.build import build
from mindpangu.lifecycle.prune import prune, require_child
from mindpangu.model.coupling import Units
from mindpangu.tiny.inheritance.importance import layer_mask
from mindpangu.train.run import open_run, train

NAMES = [
    "pangu_pi",
    "pangu_alpha_with_shortcut_and_series",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "pangu_alpha",
            "pangu_pi_with_layernorm_biases_and_tied_head",
            "pangu_pi_with_learned_positions_and_gelu",
        )
    ),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_pruned_checkpoint_equals_the_masked_model(name, compiled, tokenizer_file, tmp_path):
    parent, loss = compiled(name)
    child = parent.child()
    kept = parent.random_kept(child)
    blueprint = Blueprint.from_checkpoint(parent.save(tmp_path / "parent", tokenizer_file))

    reader = CheckpointReader(build(prune(blueprint, child, kept), tmp_path / "child", {"verb": "test"}))

    names = DenseFiles(reader).shapes
    assert not any(name.startswith("adam_") for name in names)
    model = load_model(reader)
    assert {name: parameter.shape for name, parameter in model.decoder.parameters.items()} == names
    batch = parent.batch()
    masked = loss.logits(kept.masks(parent.model), layer_mask(parent.model, kept.layers), batch)
    logits = np.stack(
        [
            model.next_token_logits(batch.tokens_BS, 0, last)[:, : parent.model.vocab_size]
            for last in range(parent.model.seq_length)
        ],
        axis=1,
    ).reshape(masked.shape)
    assert masked.std() > 0.3
    np.testing.assert_allclose(logits, masked, atol=1e-5)
    unmasked = loss.logits(Units.full(parent.model), layer_mask(parent.model, range(4)), batch)
    assert abs(unmasked - masked).max() > 0.1


def test_a_child_with_a_shorter_sequence_keeps_the_first_positions(small, models, tokenizer_file, tmp_path):
    parent = small(**models["pangu_alpha"])
    child = parent.child(model__seq_length="5")
    kept = parent.random_kept(child)
    blueprint = Blueprint.from_checkpoint(parent.save(tmp_path / "parent", tokenizer_file))

    reader = CheckpointReader(build(prune(blueprint, child, kept), tmp_path / "child", {"verb": "test"}))

    files = DenseFiles(reader)
    for name in ("position_embedding", "query_embedding"):
        expected = parent.weights[name][:5, kept.units.channels]
        np.testing.assert_array_equal(files.read(name), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.hidden_size": "16", "model.num_heads": "2"}, "with model.num_heads 2, model.hidden_size must be 12"),
        ({"model.hidden_size": "30", "model.num_heads": "5"}, "not be larger than it: model.hidden_size is 24 there"),
        ({"model.num_layers": "5"}, "model.num_layers is 4 there, 5 here"),
        ({"model.ffn_hidden_size": "21"}, "model.ffn_hidden_size is 20 there, 21 here"),
        ({"model.seq_length": "8"}, "model.seq_length is 7 there, 8 here"),
        ({"model.norm": "layernorm"}, "must have its architecture: model.norm is rmsnorm there, layernorm here"),
        ({"model.shortcut_reduction": "4"}, "model.shortcut_reduction is 3 there, 4 here"),
        ({"model.vocab_size": "400"}, "must have its vocabulary"),
        ({"model.rre_layers": "1"}, "model.rre_layers of the child is 1"),
    ],
)
def test_children_that_do_not_fit_are_refused(changes, message, small, models, tokenizer_file, tmp_path):
    parent = small(**models["pangu_pi"])
    blueprint = Blueprint.from_checkpoint(parent.save(tmp_path / "parent", tokenizer_file))
    child = load_config(None, parent.overrides | changes)
    with pytest.raises(CheckpointError, match=message):
        require_child(blueprint, child)


def test_a_sparse_parent_is_refused(tiny_overrides):
    dense = SimpleNamespace(reader=SimpleNamespace(folder=Path("somewhere")))
    sparse = SimpleNamespace(config=load_config(None, tiny_overrides), contents={"zh": None}, dense=dense)
    with pytest.raises(CheckpointError, match="somewhere is sparse"):
        require_child(sparse, load_config(None, tiny_overrides | {"model.rre_layers": "0"}))


def test_a_pruned_checkpoint_can_be_trained_and_other_models_refuse_it(tiny_overrides, pangu_pi, small, tmp_path):
    source = Path(tiny_overrides["training.output_dir"]) / "prepared"
    words = tiny_overrides | pangu_pi | {"model.rre_layers": "0", "model.num_layers": "4", "training.steps": "1"}
    words |= {"lr_scheduler.warmup_steps": "0", "training.output_dir": str(tmp_path), "training.run_name": "child"}
    words |= {"model.layernorm_epsilon": "0.01"}
    shutil.copytree(source, tmp_path / "child", ignore=shutil.ignore_patterns("routing"))
    smaller = {"model.num_layers": "2", "model.hidden_size": "8", "model.num_heads": "1", "model.ffn_hidden_size": "12"}
    parent = small(**{key.replace(".", "__"): value for key, value in words.items()})
    child = load_config(None, words | smaller)
    kept = parent.random_kept(child, layers=(0, 3))
    blueprint = Blueprint.from_checkpoint(parent.save(tmp_path / "parent", source / "tokenizer" / "main.model"))
    folder = build(prune(blueprint, child, kept), tmp_path / "inherited", {"verb": "test"})

    with pytest.raises(CheckpointError, match=r"model\.hidden_size is 8 there, 16 here"):
        train(open_run(load_config(None, words)), load=folder, log=lambda text: None)
    assert train(open_run(child), load=folder, log=lambda text: None) == 1

    trained, before = (DenseFiles(CheckpointReader(path)) for path in (tmp_path / "child", folder))
    name = "blocks.1.ffn.down.weight"
    change = abs(trained.read(name) - before.read(name)).max()
    assert 0 < change < 0.01  # one step of Adam
    assert json.loads((CheckpointReader(folder).folder / "state.json").read_text())["made_by"] == {"verb": "test"}
