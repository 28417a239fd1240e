"""Training FLOPs against hand-computed ones."""

import pytest

from mindpangu.config import load_config
from mindpangu.tiny.compute import flops_per_token, steps_within, training_flops

OVERRIDES = {
    "model": "{num_layers: 2, rre_layers: 0, hidden_size: 8, ffn_hidden_size: 16, num_heads: 2, seq_length: 4, "
    "vocab_size: 10, query_layer: false, position: rope, norm: rmsnorm, activation: swiglu, biases: false, "
    "tied_head: false}",
    "training.local_batch_size": "3",
    "data.domains_per_step": "3",
    "training.steps": "7",
    "lr_scheduler.warmup_steps": "1",
}


def test_flops_match_a_hand_computed_count():
    config = load_config(None, OVERRIDES)
    weights = 10 * 8 + 2 * (4 * 8 * 8 + 3 * 8 * 16) + 5 * 8  # output head without the embedding; matrices; norms

    assert flops_per_token(config) == 6 * weights + 12 * 2 * 4 * 8
    assert training_flops(config) == 7 * 3 * 4 * flops_per_token(config)


def test_learned_positions_cost_no_flops():
    config = load_config(None, OVERRIDES)
    learned = load_config(None, OVERRIDES | {"model": OVERRIDES["model"].replace("rope", "learned")})

    assert flops_per_token(learned) == flops_per_token(config)


def test_a_larger_model_gets_fewer_steps_from_the_same_compute():
    small = load_config(None, OVERRIDES)
    large = load_config(None, OVERRIDES | {"model.vocab_size": "400"})
    ratio = flops_per_token(small) / flops_per_token(large)

    assert steps_within(small, training_flops(small)) == 7
    assert steps_within(large, 100 * training_flops(small)) == pytest.approx(700 * ratio, abs=0.5)
    assert steps_within(large, 1.0) == 1
