"""What a training computes, by arithmetic: models that differ are compared at equal compute."""

from mindpangu.config import Config
from mindpangu.model.parameter_count import count_parameters


def flops_of_token(config: Config) -> int:
    """Floating-point operations that one token costs in training: 6 · N + 12 · L · S · H (PaLM, arXiv 2204.02311,
    appendix B).

    Two for each weight it is multiplied with, forward, and twice that backward; the second term is that of attention
    scores, which take all S positions here. N is what takes part in one token (`ParameterCount.activated`) but for the
    rows of positions, which are only looked up as those of the embedding are. Recomputation is not counted.
    """
    model = config.model
    attention = 12 * model.num_layers * model.seq_length * model.hidden_size
    count = count_parameters(config)
    return 6 * (count.activated - count.positions) + attention


def tokens_of_step(config: Config) -> int:
    """Tokens of one optimizer step, over all processes."""
    return config.training.global_batch_size * config.model.seq_length


def steps_within(config: Config, flops: float) -> int:
    """How many steps a training may take within a number of floating-point operations; at least 1."""
    return max(1, round(flops / (flops_of_token(config) * tokens_of_step(config))))


def flops_of_training(config: Config) -> int:
    """Of training.steps steps."""
    return flops_of_token(config) * tokens_of_step(config) * config.training.steps
