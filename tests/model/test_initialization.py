"""Initial weights: each tensor from its own random stream, the same in every version."""

import hashlib

import numpy as np
import pytest

from mindpangu.config import load_config
from mindpangu.model.initialization import initial_expert, initial_series, normal, output_std

CONFIG = load_config(None, {"model.hidden_size": "8"})


def test_an_expert_does_not_change_between_versions():
    """Experts of new domains and of resized groups are drawn in the middle of a model's life."""
    expert = initial_expert(CONFIG, 1, "zh", 2)

    digests = {name: hashlib.sha256(tensor.tobytes()).hexdigest()[:16] for name, tensor in expert.items()}
    assert list(digests) == ["up", "up_bias", "down", "down_bias"]
    assert (digests["up"], digests["down"]) == ("210f2fd3be488059", "7e9e201a51845987")
    assert not expert["up_bias"].any()
    assert not expert["down_bias"].any()


@pytest.mark.parametrize("other", [(0, "zh", 2), (1, "en", 2), (1, "zh", 1)])
def test_every_layer_domain_and_index_has_its_own_expert(other):
    one = initial_expert(CONFIG, 1, "zh", 2)
    another = initial_expert(CONFIG, *other)

    for name in ("up", "down"):
        assert not np.isin(another[name], one[name]).any()


def test_another_seed_gives_other_weights():
    assert not np.isin(normal(1, "a", (9,), 1.0), normal(2, "a", (9,), 1.0)).any()


def test_values_have_the_standard_deviation_of_their_matrix():
    config = load_config(None, {"model.hidden_size": "64", "model.num_layers": "8", "model.init_std": "0.5"})

    expert = initial_expert(config, 0, "zh", 0)

    assert expert["up"].std() == pytest.approx(0.5, rel=0.03)
    assert expert["down"].std() == pytest.approx(0.5 / 4, rel=0.03)


@pytest.mark.parametrize(
    ("rule", "stds"),
    [
        ("constant", [0.5, 0.5]),
        ("depth_scaled", [0.5 / np.sqrt(16)] * 2),
        ("layer_wise", [0.5 / np.sqrt(2), 0.5 / np.sqrt(16)]),
    ],
)
def test_matrices_that_write_to_the_residual_stream_have_smaller_values(rule, stds):
    changes = {"model.num_layers": "8", "model.init_std": "0.5", "model.initialization": rule}
    model = load_config(None, changes).model
    assert [output_std(model, layer) for layer in (0, 7)] == pytest.approx(stds)


def test_an_rre_layer_counts_from_the_bottom_of_the_model():
    changes = {"model.hidden_size": "64", "model.num_layers": "8", "model.rre_layers": "2", "model.init_std": "0.5"}
    config = load_config(None, changes | {"model.initialization": "layer_wise"})

    down = initial_expert(config, 0, "zh", 0)["down"]  # of the seventh layer

    assert down.std() == pytest.approx(0.5 / np.sqrt(14), rel=0.02)


def test_the_shifts_of_a_series_are_1_apart_around_0():
    assert [initial_series(terms, 1)["shift"][:, 0].tolist() for terms in (1, 2, 3)] == [[0], [-0.5, 0.5], [-1, 0, 1]]
    assert (initial_series(2, 3)["scale"] == np.ones((2, 3))).all()
