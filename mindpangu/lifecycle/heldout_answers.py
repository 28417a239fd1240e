"""What a model makes of held-out instruction records: the loss of their answers, and answers of its own."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mindpangu.checkpoint import CheckpointReader
from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder
from mindpangu.data import HELDOUT, TokenShards, first_answer
from mindpangu.domains import domain_named
from mindpangu.generation.generator import Generator, Request
from mindpangu.generation.text import whole_characters
from mindpangu.language_model import load_model
from mindpangu.train.heldout import evaluate_heldout

_LONGEST_ANSWER = 64  # tokens


@dataclass(frozen=True)
class Answer:
    """A held-out record: what is given, the answer that it has (a dialogue its first), and the model's."""

    domain: str
    given: str
    reference: str
    answer: str


def heldout_answers(
    reader: CheckpointReader,
    config: Config,
    num_answers: int,
    progress: Callable[[Sequence], Sequence] = lambda items: items,
) -> dict[str, Any]:
    """What a checkpoint makes of the held-out records of `config`'s run folder, as JSON-able values.

    Args:
        config: of the run folder, whose model is the checkpoint's.
        progress: wraps the list of domains, e.g. in a progress bar.

    Returns:
        domains: for each domain with held-out records its name, the answer tokens that count, and their mean loss.
        answers: of the first `num_answers` records of each the fields of `Answer`; decoded greedily.

    Raises:
        MindPanguError: checkpoint and shards do not belong together.
    """
    model, shards = (
        load_model(reader, config.context),
        TokenShards.open(RunFolder.from_config(config).data, verify=True),
    )
    model.require_data(shards)
    results = evaluate_heldout(model, shards, config, wrong_domains=False, progress=progress)
    of_domain = {each.domain: min(num_answers, shards.num_documents(each.domain, HELDOUT)) for each in results}
    length = model.config.model.seq_length
    records = [
        (name, *first_answer(*shards.samples(name, HELDOUT, length)[index]))
        for name in of_domain
        for index in range(of_domain[name])
    ]
    requests = [Request(name, given, _LONGEST_ANSWER) for name, given, _ in records]
    answers = []
    for (name, *known), found in zip(
        records, Generator.load(reader, context=config.context).generate(requests), strict=True
    ):
        decode = model.tokenizer_of(domain_named(model.domains, name)[1]).decode
        answers.append(asdict(Answer(name, *(whole_characters(decode(ids)) for ids in known), found.text)))
    domains = [{"domain": each.domain, "tokens": each.tokens, "loss": each.loss} for each in results]
    return {"domains": domains, "answers": answers}
