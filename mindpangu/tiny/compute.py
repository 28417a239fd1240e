"""Training FLOPs, computed from the configuration, so that different models can be compared at equal compute."""

from mindpangu.config import Config
from mindpangu.model.parameter_count import count_parameters


def flops_per_token(config: Config) -> int:
    """Returns the training FLOPs of one token: 6 · N + 12 · L · S · H (PaLM, arXiv 2204.02311, appendix B).

    Each weight costs two operations in the forward pass and four in the backward pass. The second term is for the
    attention scores, here computed over all S positions. N is the number of parameters that one token uses
    (`ParameterCount.activated`) without the position table, which is only looked up, like the embedding. Recomputation
    is not counted.
    """
    model = config.model
    attention = 12 * model.num_layers * model.seq_length * model.hidden_size
    count = count_parameters(config)
    return 6 * (count.activated - count.positions) + attention


def tokens_per_step(config: Config) -> int:
    """Returns the number of tokens per optimizer step, over all processes."""
    return config.training.global_batch_size * config.model.seq_length


def steps_within(config: Config, flops: float) -> int:
    """Returns how many training steps fit into a FLOP budget; at least 1."""
    return max(1, round(flops / (flops_per_token(config) * tokens_per_step(config))))


def training_flops(config: Config) -> int:
    """Returns the FLOPs of all training.steps steps."""
    return flops_per_token(config) * tokens_per_step(config) * config.training.steps
