"""Measures of a trained model: held-out loss in bits per byte, training speed and decoding speed."""

import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from mindpangu.checkpoint import CheckpointReader
from mindpangu.data import HELDOUT, TokenShards
from mindpangu.errors import TrainingError
from mindpangu.evaluation.bits_per_byte import bits_per_byte
from mindpangu.evaluation.heldout import evaluate_heldout
from mindpangu.generation.generator import open_cache
from mindpangu.generation.steps import DecodingSteps, ExpertPools
from mindpangu.language_model import ExpertReader, LanguageModel, ModelParts, read_dense
from mindpangu.model.decoder import Decoder

# The paper measures batches of 20 texts with a prefix of 2 tokens and 510 new tokens (arXiv 2402.02791).
DECODE_BATCH = 8
DECODE_PREFIX = 2
DECODE_TOKENS = 128
DECODE_ROUNDS = 3


def heldout_bits_per_byte(model: LanguageModel, shards: TokenShards) -> list[dict[str, Any]]:
    """Returns the domain's name, mean loss in nats per token, and bits per byte, for each domain with held-out text.

    The loss is measured on the first monitor.heldout_samples samples; tokens and bytes are those of the complete split.

    Raises:
        TrainingError: a loss is not finite.
    """
    measures = []
    for result in evaluate_heldout(model, shards, model.config, wrong_domains=False):
        if not math.isfinite(result.loss):
            raise TrainingError(f"the held-out loss of {result.domain} is {result.loss}; lower the learning rate")
        num_tokens = shards.num_tokens(result.domain, HELDOUT)
        num_bytes = shards.text_bytes(result.domain, HELDOUT)
        bits = bits_per_byte(result.loss, num_tokens, num_bytes)
        measures.append({"domain": result.domain, "loss": result.loss, "bits_per_byte": bits})
    return measures


def final_loss(records: Sequence[dict[str, Any]]) -> float | None:
    """Returns the mean of the finite training losses of the last tenth of the steps; None if there are none."""
    losses = [record["loss"] for record in records[-max(1, len(records) // 10) :] if record["loss"] is not None]
    return statistics.fmean(losses) if losses else None


def training_speed(records: Sequence[dict[str, Any]]) -> float:
    """Returns the median tokens per second, leaving out the first steps, which compile.

    Leaves out five steps, or half of the steps if there are fewer than ten.
    """
    speeds = [record["tokens_per_s"] for record in records]
    return statistics.median(speeds[min(5, len(speeds) // 2) :])


def decoding_speed(reader: CheckpointReader) -> float:
    """Returns the decoding speed in tokens per second, with a key-value cache.

    Decodes 8 texts greedily from 2 tokens, for 128 tokens or until the context window is full. No token ends a text, so
    all models do the same work. Takes the median of three rounds, after one that compiles.
    """
    parts = ModelParts.from_checkpoint(reader)
    decoder = Decoder(parts.config, parts.vocabularies)
    read_dense(reader, decoder.parameters, decoder.slices)
    pools = ExpertPools(parts, open_cache(parts, ExpertReader(reader, parts), DECODE_BATCH))
    steps = DecodingSteps(parts, decoder, pools, DECODE_BATCH, parts.config.model.seq_length)
    seconds = [_decode(steps, parts) for _ in range(1 + DECODE_ROUNDS)]
    return 1 / statistics.median(seconds[1:])


def _decode(steps: DecodingSteps, parts: ModelParts) -> float:
    """Decodes the batch once; returns the seconds per new token."""
    domain = 0
    tokenizer = parts.tokenizer_of(parts.domains[domain])
    domains_B = np.full(steps.batch, domain)
    active_B = np.ones(steps.batch, bool)
    prefix = [tokenizer.eot_id] * min(DECODE_PREFIX, steps.capacity - 1)
    new_tokens = min(DECODE_TOKENS, steps.capacity - len(prefix))
    begin = time.perf_counter()
    scores = [steps.prefill(text, domain, prefix) for text in range(steps.batch)]
    for position in range(len(prefix), len(prefix) + new_tokens):
        tokens_B = np.array([scores_V[: tokenizer.vocab_size].argmax() for scores_V in scores], np.int32)
        scores = steps.extend(tokens_B, np.full(steps.batch, position, np.int32), domains_B, active_B)
    return (time.perf_counter() - begin) / (steps.batch * new_tokens)
