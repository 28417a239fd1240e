"""Fine-tuning: the settings that a run on instruction records takes from its checkpoint, and how its result is shown.

The training itself is `train.run`; the records are `data.instruction`'s; held-out ones are answered in
`heldout_answers.py`. No MindSpore is loaded here.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mindpangu.checkpoint import CheckpointReader, read_tokenizers
from mindpangu.config import ONE_PROCESS, Config
from mindpangu.data import CorpusReader
from mindpangu.domains import build_domains, trained_domains
from mindpangu.errors import CheckpointError, DataError

PASSES, MOST_STEPS = 3, 300
"""The steps that fine-tuning takes unless told otherwise: so many passes over the records, but not above a limit."""
RATE = 0.5
"""Its peak learning rate, as a part of that of the checkpoint's training (ours)."""


def _tokenizer(reader: CheckpointReader, config: Config) -> Path:
    """The checkpoint's tokenizer, which all vocabularies must share."""
    different = {tokenizer.digest: vocabulary for vocabulary, tokenizer in read_tokenizers(reader, config).items()}
    if len(different) > 1:
        raise CheckpointError(
            f"{reader.folder} has vocabularies with tokenizers of their own ({', '.join(different.values())}), and "
            "records are written with one; `mindpangu extract` the domains of one vocabulary first"
        )
    return reader.folder / "tokenizer" / f"{next(iter(different.values()))}.model"


def finetune_settings(checkpoint: Path, files: Sequence[str], train: str) -> dict[str, str]:
    """The keys in which a fine-tuning differs from the training of its checkpoint, as overrides of its configuration.

    Tokenizer and routing tables are the checkpoint's. The domains of the records share the samples equally. One process
    trains, in the checkpoint's global batch.

    Args:
        files: jsonl files of instruction records.
        train: training.train.

    Raises:
        DataError: there are no records to train on. CheckpointError, ConfigError: the checkpoint cannot be used.
    """
    reader = CheckpointReader(checkpoint)
    config = reader.config()
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
    rate, steps = (
        config.lr_scheduler.learning_rate * RATE,
        math.ceil(PASSES * usable / config.training.global_batch_size),
    )
    settings = {
        "data.format": "instruction",
        "data.corpus": json.dumps(list(files)),
        "data.tokenizer": str(_tokenizer(reader, config)),
        "data.mixture": json.dumps(weights),
        "data.phases": "[]",
        "data.domain_groups": "1",
        "training.train": train,
        "training.steps": str(min(steps, MOST_STEPS)),
        "training.run_name": f"{config.training.run_name}_finetuned",
        "lr_scheduler.learning_rate": f"{rate:g}",
        "lr_scheduler.lr_end": "0",
        "lr_scheduler.warmup_steps": "0",
        "lr_scheduler.decay_steps": "0",
        **ONE_PROCESS,
    }
    return settings | ({"routing.table": str(reader.folder / "routing")} if config.model.rre_layers else {})


def _count_records(config: Config) -> Counter[int]:
    """Domain id → usable records. Bad ones are the data stage's to judge."""
    lenient = replace(config, data=replace(config.data, max_bad_records=sys.maxsize))
    return Counter(record.domain_id for record in CorpusReader(lenient, build_domains(config)))


def format_comparison(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """A row for each domain: the loss of held-out answers before and after; then the answers."""
    lines = [
        f"{'domain':>12} {'answer tokens':>14} {'loss before':>12} {'after':>7} {'perplexity before':>18} {'after':>8}"
    ]
    for then, now in zip(before["domains"], after["domains"], strict=True):
        perplexities = f"{math.exp(then['loss']):>18.1f} {math.exp(now['loss']):>8.1f}"
        lines.append(
            f"{now['domain']:>12} {now['tokens']:>14,} {then['loss']:>12.3f} {now['loss']:>7.3f} {perplexities}"
        )
    for then, now in zip(before["answers"], after["answers"], strict=True):
        lines += [f"── {now['domain']} ──", now["given"].strip(), f"  record: {now['reference']}"]
        lines += [f"  before: {then['answer']}", f"  after:  {now['answer']}"]
    return "\n".join(lines)
