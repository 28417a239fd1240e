"""The evaluation record of a run, `evaluation.json`: the inputs that decide it, the results, and the printed table."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mindpangu.config import Config

FORMAT_VERSION = 2  # version 1 left out the samples of an incomplete last batch


def perplexity(loss: float) -> float:
    """Returns exp of a loss in nats, or infinity if a float cannot hold it."""
    return math.exp(loss) if loss < 700 else math.inf


@dataclass(frozen=True)
class DomainResult:
    """Results on one domain's held-out text.

    Attributes:
        domain: name of the domain.
        tokens: number of targets that count.
        loss: mean −log p of the targets under the model.
        unigram_loss: mean −log p of the targets under the token frequencies of the domain's training split.
        loss_as: loss of the same tokens when they are routed as another domain; domain name → loss.
    """

    domain: str
    tokens: int
    loss: float
    unigram_loss: float
    loss_as: dict[str, float]

    @property
    def perplexity(self) -> float:
        """Perplexity of the model."""
        return perplexity(self.loss)

    @property
    def unigram_perplexity(self) -> float:
        """Perplexity of the unigram baseline."""
        return perplexity(self.unigram_loss)

    @property
    def ratio(self) -> float:
        """Perplexity of the model divided by that of the unigram baseline."""
        return perplexity(self.loss - self.unigram_loss)

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as JSON values: losses and perplexities."""
        return asdict(self) | {
            "perplexity": self.perplexity,
            "unigram_perplexity": self.unigram_perplexity,
            "ratio": self.ratio,
            "perplexity_as": {name: perplexity(loss) for name, loss in self.loss_as.items()},
        }


def evaluation_inputs(checkpoint: str, data: str, config: Config, wrong_domains: bool) -> dict[str, Any]:
    """Returns everything that determines a record. An evaluation with equal inputs need not run again.

    Args:
        checkpoint: digest of the checkpoint.
        data: digest of the token shards.
        config: configuration of the evaluation.
        wrong_domains: whether every text is also routed as every other domain.
    """
    return {
        "format_version": FORMAT_VERSION,
        "checkpoint": checkpoint,
        "data": data,
        "heldout_samples": config.monitor.heldout_samples,
        "wrong_domains": wrong_domains,
        "precision": config.context.precision,
    }


def evaluation_record(step: int, results: Sequence[DomainResult]) -> dict[str, Any]:
    """Returns the content of `evaluation.json` for a checkpoint of this step, without its inputs."""
    return {"step": step, "domains": [result.to_dict() for result in results]}


def format_results(results: Sequence[DomainResult]) -> str:
    """Formats the results as a table with one row per domain."""
    has_wrong_domains = any(result.loss_as for result in results)
    head = f"{'domain':>12} {'tokens':>8} {'perplexity':>11} {'unigram':>9} {'ratio':>6}"
    if has_wrong_domains:
        head += "   perplexity when routed as another domain"
    lines = [head]
    for result in results:
        line = (
            f"{result.domain:>12} {result.tokens:>8,} {result.perplexity:>11.1f} {result.unigram_perplexity:>9.1f} "
            f"{result.ratio:>6.3f}"
        )
        if has_wrong_domains:
            others = "  ".join(f"{name} {perplexity(loss):.0f}" for name, loss in result.loss_as.items())
            line += f"   {others}"
        lines.append(line)
    return "\n".join(lines)
