"""Fine-tuning: settings for a run on instruction records, derived from its checkpoint, and the printed comparison.

`train.run` does the training, `data.instruction` reads the records, `evaluation.answers` answers held-out ones. This
module does not load MindSpore.
"""

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from mindpangu.checkpoint import CheckpointReader, read_tokenizers
from mindpangu.config import ONE_PROCESS, Config, core_yaml
from mindpangu.data import CorpusReader
from mindpangu.domains import build_domains, trained_domains
from mindpangu.errors import CheckpointError, DataError
from mindpangu.evaluation.record import perplexity
from mindpangu.untrusted import DIGEST, Count, DomainName, Measured

PASSES = 3
"""Default number of passes over the records."""

MAX_STEPS = 300
"""Default limit on the number of steps."""

LEARNING_RATE_FACTOR = 0.5
"""Default peak learning rate as a fraction of the checkpoint's (ours)."""


def _tokenizer(reader: CheckpointReader, config: Config) -> Path:
    """Returns the path of the checkpoint's tokenizer, which all vocabularies must share."""
    by_digest = {tokenizer.digest: vocabulary for vocabulary, tokenizer in read_tokenizers(reader, config).items()}
    if len(by_digest) > 1:
        raise CheckpointError(
            f"{reader.folder} has vocabularies with different tokenizers ({', '.join(by_digest.values())}), but "
            "fine-tuning records are tokenized with one; `mindpangu extract` the domains of one vocabulary first"
        )
    return reader.folder / "tokenizer" / f"{next(iter(by_digest.values()))}.model"


def finetune_settings(checkpoint: Path, files: Sequence[str], train: str) -> dict[str, str]:
    """Returns the settings in which a fine-tuning differs from the training of its checkpoint, as dotted overrides.

    Tokenizer and routing tables are the checkpoint's. The domains of the records share the samples equally. One process
    trains with the checkpoint's global batch size.

    Args:
        files: jsonl files of instruction records.
        train: value of training.train.

    Raises:
        DataError: there are no records to train on.
        CheckpointError, ConfigError: the checkpoint cannot be used.
    """
    reader = CheckpointReader(checkpoint)
    config = reader.config(reader.local_settings())
    config = replace(
        config,
        data=replace(config.data, corpus=list(files), format="instruction", mixture={}, phases=[]),
        training=replace(config.training, train=train),
    )
    domains = build_domains(config)
    trained = trained_domains(config, domains)
    found = _count_records(config)
    weights = {
        domain.name: int(found[index] > 0 and (trained is None or index in trained))
        for index, domain in enumerate(domains)
    }
    if not any(weights.values()):
        listing = ", ".join(f"{domains[index].name} {count:,}" for index, count in sorted(found.items())) or "none"
        raise DataError(
            f"there is nothing to train in {', '.join(files)} with --train {train}; records found: {listing}"
        )
    usable = sum(found[index] for index, domain in enumerate(domains) if weights[domain.name])
    learning_rate = config.lr_scheduler.learning_rate * LEARNING_RATE_FACTOR
    steps = math.ceil(PASSES * usable / config.training.global_batch_size)
    settings = {
        "data.format": "instruction",
        "data.corpus": core_yaml.dump(list(files)),
        "data.tokenizer": str(_tokenizer(reader, config)),
        "data.mixture": core_yaml.dump(weights),
        "data.phases": "[]",
        "data.domain_groups": "1",
        "training.train": train,
        "training.steps": str(min(steps, MAX_STEPS)),
        "training.run_name": f"{config.training.run_name}_finetuned",
        "lr_scheduler.learning_rate": f"{learning_rate:g}",
        "lr_scheduler.lr_end": "0",
        "lr_scheduler.warmup_steps": "0",
        "lr_scheduler.decay_steps": "0",
        **ONE_PROCESS,
    }
    if config.model.rre_layers:
        settings["routing.table"] = str(reader.folder / "routing")
    return settings


def _count_records(config: Config) -> Counter[int]:
    """Counts the usable records per domain id. Skips bad ones, which the data stage will report."""
    lenient = replace(config, data=replace(config.data, max_bad_records=sys.maxsize))
    return Counter(record.domain_id for record in CorpusReader(lenient, build_domains(config)))


@dataclass(frozen=True)
class _DomainLoss:
    """The loss of a domain's held-out answers."""

    domain: DomainName
    tokens: Count
    loss: Measured


@dataclass(frozen=True)
class _Answer:
    """A held-out record with the model's answer."""

    domain: DomainName
    given: str
    reference: str
    answer: str


@dataclass(frozen=True)
class _Answered:
    """The result of `evaluation.answers.heldout_answers`."""

    domains: list[_DomainLoss]
    answers: list[_Answer]


@dataclass(frozen=True)
class SavedComparison:
    """The content of finetune.json, without its inputs.

    Attributes:
        before: evaluation of the checkpoint that the fine-tuning starts from.
        after: evaluation of the tuned checkpoint, once there is one.
        tuned: digest of the tuned checkpoint.
    """

    before: _Answered
    after: _Answered | None = None
    tuned: Annotated[str, DIGEST] | None = None

    def __post_init__(self) -> None:
        if (self.after is None) != (self.tuned is None):
            raise ValueError("only one of after and tuned is present")
        if self.after is not None and (len(self.before.domains), len(self.before.answers)) != (
            len(self.after.domains),
            len(self.after.answers),
        ):
            raise ValueError("before and after have different domains or answers")


def format_comparison(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Formats the loss of held-out answers before and after, one row per domain, followed by the answers."""
    lines = [
        f"{'domain':>12} {'answer tokens':>14} {'loss before':>12} {'after':>7} {'perplexity before':>18} {'after':>8}"
    ]
    for old, new in zip(before["domains"], after["domains"], strict=True):
        perplexities = f"{perplexity(old['loss']):>18.1f} {perplexity(new['loss']):>8.1f}"
        lines.append(
            f"{new['domain']:>12} {new['tokens']:>14,} {old['loss']:>12.3f} {new['loss']:>7.3f} {perplexities}"
        )
    for old, new in zip(before["answers"], after["answers"], strict=True):
        lines += [f"── {new['domain']} ──", new["given"].strip(), f"  record: {new['reference']}"]
        lines += [f"  before: {old['answer']}", f"  after:  {new['answer']}"]
    return "\n".join(lines)
