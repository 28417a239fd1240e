"""Evaluation on held-out instruction records: the loss of their answers, and the model's own answers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mindpangu.checkpoint import CheckpointReader
from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder
from mindpangu.data import HELDOUT, TokenShards, first_answer
from mindpangu.domains import domain_named
from mindpangu.evaluation.heldout import evaluate_heldout
from mindpangu.generation.generator import Generator, Request
from mindpangu.generation.text import whole_characters
from mindpangu.language_model import load_model

_LONGEST_ANSWER = 64  # tokens


@dataclass(frozen=True)
class Answer:
    """A held-out record with the model's answer.

    Attributes:
        domain: name of the domain.
        given: text before the answer.
        reference: the record's answer; the first one of a dialogue.
        answer: the model's answer.
    """

    domain: str
    given: str
    reference: str
    answer: str


def heldout_answers(
    reader: CheckpointReader,
    config: Config,
    num_answers: int,
    progress: Callable[[Sequence], Iterable] = lambda items: items,
) -> dict[str, Any]:
    """Evaluates a checkpoint on the held-out records of the run folder of `config`.

    Args:
        config: configuration of the run folder, which describes the checkpoint's model.
        num_answers: number of records per domain to answer.
        progress: wraps the list of domains, e.g. in a progress bar.

    Returns:
        JSON values.
        domains: for each domain with held-out records, its name, its number of answer tokens, and their mean loss.
        answers: the fields of `Answer` for the first `num_answers` records of each domain, answered greedily.

    Raises:
        MindPanguError: checkpoint and shards do not belong together.
    """
    model = load_model(reader, config.context, config.experts)
    shards = TokenShards.open(RunFolder.from_config(config).data, verify=True)
    model.require_data(shards)
    results = evaluate_heldout(model, shards, config, wrong_domains=False, progress=progress)

    seq_length = model.config.model.seq_length
    records = []
    for result in results:
        samples = shards.samples(result.domain, HELDOUT, seq_length)
        num_records = min(num_answers, shards.num_documents(result.domain, HELDOUT))
        for index in range(num_records):
            ids_T, counted_T = samples[index]
            assert counted_T is not None, "text has no answers"
            given, reference = first_answer(ids_T, counted_T)
            records.append((result.domain, given, reference))

    generator = Generator.load(reader, context=config.context)
    completions = generator.generate([Request(name, given, _LONGEST_ANSWER) for name, given, _ in records])
    answers = []
    for (name, given, reference), completion in zip(records, completions, strict=True):
        _, domain = domain_named(model.domains, name)
        decode = model.tokenizer_of(domain).decode
        answer = Answer(
            domain=name,
            given=whole_characters(decode(given)),
            reference=whole_characters(decode(reference)),
            answer=completion.text,
        )
        answers.append(asdict(answer))
    domains = [{"domain": each.domain, "tokens": each.tokens, "loss": each.loss} for each in results]
    return {"domains": domains, "answers": answers}
