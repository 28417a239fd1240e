"""The held-out split: the source documents that are never trained on.

A keyed hash of the document's name selects them, so the split depends neither on the order of files and records nor on
other domains.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mindpangu.data.corpus import CorpusReader, Record
from mindpangu.data.mixture import domains_in_use
from mindpangu.domains import Domain
from mindpangu.errors import DataError

TRAIN = "train"
HELDOUT = "heldout"
SPLITS = (TRAIN, HELDOUT)


@dataclass(frozen=True)
class HeldoutSplit:
    """The split of one corpus: for each domain, the hashes (`document_order`) of its held-out documents."""

    seed: int
    domains: tuple[Domain, ...]
    heldout: tuple[frozenset[int], ...]

    def side_of(self, record: Record) -> str:
        """Returns TRAIN or HELDOUT."""
        order = document_order(self.seed, self.domains[record.domain_id].name, record.source_document)
        return HELDOUT if order in self.heldout[record.domain_id] else TRAIN


def split_corpus(reader: CorpusReader) -> HeldoutSplit:
    """Reads the corpus once and splits every domain by source document.

    In the order of their hashes, documents are held out if they fit into the rest of the budget, which is
    data.heldout_fraction of the domain's text bytes. If none fits, the smallest is held out. This takes about 100 bytes
    of memory per source document.

    Raises:
        DataError: a domain with a weight above 0 has no record, or only one source document.
    """
    settings = reader.config.data
    domains = reader.domains
    sizes_by_domain: list[dict[int, int]] = [{} for _ in domains]
    for record in reader:
        order = document_order(settings.seed, domains[record.domain_id].name, record.source_document)
        sizes = sizes_by_domain[record.domain_id]
        sizes[order] = sizes.get(order, 0) + record.text_bytes
    for index in sorted(domains_in_use(reader.config, domains)):
        name = domains[index].name
        num_documents = len(sizes_by_domain[index])
        if num_documents == 0:
            raise DataError(
                f"data.corpus has no record of domain {name!r}; add text, remove it from domains.names, or give "
                "it the weight 0 in data.mixture"
            )
        if num_documents == 1:
            raise DataError(
                f"domain {name!r} has a single source document in data.corpus; at least two are needed, because "
                'one is held out. Give its records different "doc" fields, or add text'
            )
    heldout = tuple(frozenset(choose_heldout(sizes, settings.heldout_fraction)) for sizes in sizes_by_domain)
    return HeldoutSplit(settings.seed, domains, heldout)


def training_texts(reader: CorpusReader, split: HeldoutSplit) -> Iterator[str]:
    """Yields the texts of the training split, e.g. to train a tokenizer."""
    for record in reader:
        if split.side_of(record) == TRAIN:
            yield from (text for _, text in record.parts)


def choose_heldout(size_of_order: Mapping[int, int], fraction: float) -> set[int]:
    """Returns the hashes of the documents to hold out.

    Holds out at least one document if there is any, and never all of two or more if fraction <= 0.5.

    Args:
        size_of_order: hash of a document → its text bytes.
        fraction: fraction of all text bytes to hold out at most, unless the smallest document is larger.
    """
    budget = fraction * sum(size_of_order.values())
    chosen: set[int] = set()
    for order, size in sorted(size_of_order.items()):
        if size <= budget:
            chosen.add(order)
            budget -= size
    return chosen or set(sorted(size_of_order, key=lambda order: (size_of_order[order], order))[:1])


def document_order(seed: int, domain_name: str, source_document: tuple[str, str]) -> int:
    """Returns the 64-bit hash that orders a domain's documents. Documents with equal hashes stay on the same side."""
    name = json.dumps([seed, domain_name, *source_document]).encode("ascii")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
