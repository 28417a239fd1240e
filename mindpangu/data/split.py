"""The held-out split: which source documents are never trained on.

Decided by a keyed hash of the document's name, so it depends neither on the order of files and records nor on other
domains; tokens and shards are elsewhere (`shards.py`).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mindpangu.data.corpus import CorpusReader, Record
from mindpangu.data.mixture import domains_in_use
from mindpangu.domains import Domain
from mindpangu.errors import DataError

TRAIN, HELDOUT = "train", "heldout"
SPLITS = (TRAIN, HELDOUT)


@dataclass(frozen=True)
class HeldoutSplit:
    """The split of one corpus: for each domain the order numbers (`document_order`) of its held-out documents."""

    seed: int
    domains: tuple[Domain, ...]
    heldout: tuple[frozenset[int], ...]

    def side_of(self, record: Record) -> str:
        """TRAIN or HELDOUT."""
        order = document_order(self.seed, self.domains[record.domain_id].name, record.source_document)
        return HELDOUT if order in self.heldout[record.domain_id] else TRAIN


def split_corpus(reader: CorpusReader) -> HeldoutSplit:
    """Reads the corpus once and splits every domain by source document.

    In the order of their hashes, documents are taken into the held-out part while they fit into its budget of
    data.heldout_fraction of the domain's text bytes; if none fits, the smallest is taken. Memory: about 100 bytes a
    source document.

    Raises:
        DataError: a domain with a weight above 0 has no record, or a single source document, which cannot be on both
            sides.
    """
    settings, domains = reader.config.data, reader.domains
    sizes: list[dict[int, int]] = [{} for _ in domains]
    for record in reader:
        order = document_order(settings.seed, domains[record.domain_id].name, record.source_document)
        of_domain = sizes[record.domain_id]
        of_domain[order] = of_domain.get(order, 0) + record.text_bytes
    for index in sorted(domains_in_use(reader.config, domains)):
        domain, of_domain = domains[index], sizes[index]
        if not of_domain:
            raise DataError(
                f"data.corpus has no record of domain {domain.name!r}; add text, remove it from domains.names, or give "
                "it the weight 0 in data.mixture"
            )
        if len(of_domain) == 1:
            raise DataError(
                f"domain {domain.name!r} has a single source document in data.corpus; at least two are needed, one of "
                'which is held out. Give its records different "doc" fields, or add text'
            )
    heldout = tuple(frozenset(choose_heldout(of_domain, settings.heldout_fraction)) for of_domain in sizes)
    return HeldoutSplit(settings.seed, domains, heldout)


def training_texts(reader: CorpusReader, split: HeldoutSplit) -> Iterator[str]:
    """The texts of the training split, as a tokenizer is trained on them."""
    for record in reader:
        if split.side_of(record) == TRAIN:
            yield from (text for _, text in record.parts)


def choose_heldout(size_of_order: Mapping[int, int], fraction: float) -> set[int]:
    """The order numbers to hold out: at least one if there is any, and never all if there are two or more and
    fraction <= 0.5."""
    budget = fraction * sum(size_of_order.values())
    chosen = set()
    for order, size in sorted(size_of_order.items()):
        if size <= budget:
            chosen.add(order)
            budget -= size
    return chosen or set(sorted(size_of_order, key=lambda order: (size_of_order[order], order))[:1])


def document_order(seed: int, domain_name: str, source_document: tuple[str, str]) -> int:
    """A document's place in the random order of its domain: 64 bits. Documents that collide share their side."""
    name = json.dumps([seed, domain_name, *source_document]).encode("ascii")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
