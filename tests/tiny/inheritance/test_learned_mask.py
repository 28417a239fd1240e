"""The learned mask: gates and Adam against formulas, and a search for planted useless units."""

import numpy as np
import pytest
from mindspore import Tensor

from mindpangu.errors import ConfigError
from mindpangu.model.coupling import Units
from mindpangu.tiny.inheritance.importance import largest
from mindpangu.tiny.inheritance.learned_mask import BETAS, LogitGroup, MaskTraining, hard_mask, learned, logit_gradient


def test_a_hard_mask_has_exactly_as_many_ones_as_asked_for():
    u = np.array([[0.1, 3.0, 2.0, -1.0], [1.0, 1.0, 1.0, 1.0]])
    assert hard_mask(u, 2).tolist() == [[0, 1, 1, 0], [1, 1, 0, 0]]
    assert hard_mask(u, 4).all()


def test_gradients_pass_straight_through_and_the_sparsity_term_has_its_own():
    settings = MaskTraining(temperature=0.7, sparsity=0.3)
    rng = np.random.default_rng(0)
    u = rng.standard_normal((2, 6))
    dmask = rng.standard_normal((2, 6))
    count = 2

    def surrogate(u):
        """Has the expected gradient: a loss linear in p, plus the sparsity term."""
        p = 1 / (1 + np.exp(-u / settings.temperature))
        return (dmask * p).sum() + settings.sparsity * ((p.mean(1) - count / 6) ** 2).sum()

    gradient = logit_gradient(u, dmask, count, settings)

    for index in np.ndindex(u.shape):
        step = np.zeros_like(u)
        step[index] = 1e-6
        assert gradient[index] == pytest.approx((surrogate(u + step) - surrogate(u - step)) / 2e-6, rel=1e-5)


def test_adam_has_one_second_moment_per_group():
    group = LogitGroup(np.zeros((2, 3)), target=1)
    rng = np.random.default_rng(1)
    gradients = rng.standard_normal((4, 2, 3))
    expected = np.zeros((2, 3))

    for step in range(1, 5):
        group.update(gradients[step - 1], step, 0.05)
        powers = np.arange(step - 1, -1, -1)
        first = (1 - BETAS[0]) * np.einsum("s,sgn->gn", BETAS[0] ** powers, gradients[:step])
        second = (1 - BETAS[1]) * np.einsum("s,sg->g", BETAS[1] ** powers, (gradients[:step] ** 2).mean(2))
        expected -= 0.05 * (first / (1 - BETAS[0] ** step)) / np.sqrt(second / (1 - BETAS[1] ** step))[:, None]

    np.testing.assert_allclose(group.logits, expected, rtol=1e-9)


def test_the_number_of_kept_units_falls_over_the_first_half():
    group = LogitGroup(np.zeros((1, 20)), target=8)
    assert [group.count(progress) for progress in (0, 0.25, 0.5, 0.9)] == [20, 14, 8, 8]


@pytest.mark.slow
def test_the_mask_finds_planted_useless_units(small, models):
    """Units whose weights behind the gate are zero change nothing; all others of this random model do."""
    parent = small(**models["pangu_pi"], **{"model.num_layers": "2"})
    child = parent.child(
        model__num_layers="2", model__hidden_size="24", model__num_heads="4", model__ffn_hidden_size="14"
    )
    rng = np.random.default_rng(3)
    useless = [set(rng.choice(20, 6, replace=False).tolist()) for _ in range(2)]
    for layer, neurons in enumerate(useless):
        parameter = parent.decoder.parameters[f"blocks.{layer}.ffn.down.weight"]
        values = parameter.asnumpy().copy()
        values[list(neurons)] = 0
        parameter.set_data(Tensor(values))
    # make the model confident in its targets, so that its other units matter
    head = parent.decoder.parameters["head.weight"]
    head.set_data(Tensor(head.asnumpy() * 10))
    batches = [parent.batch(seed, 8) for seed in range(2)]
    loss = parent.loss(*batches)
    ones = np.ones(2, np.float32)
    for batch in batches:
        scores = loss.logits(Units.full(parent.model), ones, batch)
        batch.targets_BS[:] = scores.argmax(1).reshape(batch.targets_BS.shape)

    logits = learned(loss, child.model, (0, 1), MaskTraining(steps=60, seed=1))

    kept = largest(logits, child.model)
    assert kept.channels.tolist() == list(range(24))
    for layer in range(2):
        assert useless[layer].isdisjoint(kept.neurons[layer].tolist())


def test_zero_steps_are_refused():
    with pytest.raises(ConfigError, match="--mask-steps is 0"):
        MaskTraining(steps=0)
