"""Documents to count pieces in: those of a run's corpus, or of any jsonl and text files; and which are held out."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mindpangu.config import Config
from mindpangu.data.corpus import CorpusReader, expand_patterns
from mindpangu.data.split import choose_heldout, document_order
from mindpangu.domains import build_domains
from mindpangu.errors import DataError
from mindpangu.files import count_utf8_bytes, decode_line
from mindpangu.stage import hash_files

FIELDS = ("text", "zh", "en")
_LONGEST = 1 << 16  # characters of a document of a text file without blank lines


@dataclass(frozen=True, slots=True)
class Document:
    """Texts that are held out, or not, together.

    Attributes:
        domain: of which a share is held out; "" where there are none.
        source_document: (source, document), as in `data.corpus`.
        texts: each is tokenized alone.
    """

    domain: str
    source_document: tuple[str, str]
    texts: tuple[str, ...]


class Documents(Protocol):
    """What can be read, from the start, as often as is wanted.

    Attributes:
        total_bytes, bytes_read: of the files; of the latest reading.
        digest: hex hash of the files and of what is taken from them.
    """

    total_bytes: int
    bytes_read: int
    digest: str

    def __iter__(self) -> Iterator[Document]: ...


class RunDocuments:
    """The corpus of a run: data.corpus, of the domains of the run.

    Raises:
        DataError: as `CorpusReader`.
    """

    def __init__(self, config: Config):
        self._reader = CorpusReader(config, build_domains(config))
        self.total_bytes = self._reader.total_bytes
        names = [domain.name for domain in self._reader.domains]
        self.digest = _digest(self._reader.files, [config.data.format, *names])

    @property
    def bytes_read(self) -> int:
        return self._reader.bytes_read

    def __iter__(self) -> Iterator[Document]:
        for record in self._reader:
            texts = tuple(text for _, text in record.parts)
            yield Document(self._reader.domains[record.domain_id].name, record.source_document, texts)


class FileDocuments:
    """Any files. Of a line of a jsonl file, the texts of some fields; other files are plain text, whose documents end
    at blank lines.

    Args:
        patterns: glob patterns. fields: of jsonl records; those that a record has are taken.

    Raises:
        DataError: a pattern matches no file; or, while reading: a file cannot be read, a line is not a JSON object or
            has none of the fields.
    """

    def __init__(self, patterns: Sequence[str], fields: Sequence[str] = FIELDS):
        self._files, self._fields = expand_patterns(patterns, "--corpus"), tuple(fields)
        self.total_bytes = sum(path.stat().st_size for path in self._files)
        self.bytes_read = 0
        self.digest = _digest(self._files, self._fields)

    def __iter__(self) -> Iterator[Document]:
        self.bytes_read = 0
        for path in self._files:
            try:
                with open(path, "rb") as file:
                    yield from (self._records if path.suffix == ".jsonl" else self._paragraphs)(path, file)
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}") from None

    def _records(self, path: Path, lines: Iterator[bytes]) -> Iterator[Document]:
        for number, line in enumerate(lines, start=1):
            self.bytes_read += len(line)
            if line.isspace():
                continue
            place = f"{path}:{number}"
            try:
                record = json.loads(_decoded(line, place))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{place}: not JSON ({error}); a jsonl file has one JSON object a line") from None
            if not isinstance(record, dict):
                raise DataError(f"{place}: a JSON {type(record).__name__}, not an object")
            texts = tuple(record[name] for name in self._fields if isinstance(record.get(name), str))
            if not texts:
                raise DataError(
                    f"{place}: no text in the fields {', '.join(self._fields)}; this record has "
                    f"{', '.join(map(str, record)) or 'none'}. Name those that hold text with --fields"
                )
            for text in texts:
                _require_unicode(text, place)
            source, doc = record.get("source"), record.get("doc")
            name = (str(path) if source is None else str(source), place if doc is None else str(doc))
            yield Document(str(record.get("domain", "")), name, texts)

    def _paragraphs(self, path: Path, lines: Iterator[bytes]) -> Iterator[Document]:
        gathered: list[str] = []
        size = first = 0
        for number, line in enumerate(lines, start=1):
            self.bytes_read += len(line)
            text = _decoded(line, f"{path}:{number}")
            if not text.isspace():
                first = first or number
                gathered.append(text)
                size += len(text)
            if gathered and (text.isspace() or size > _LONGEST):
                yield Document("", (str(path), str(first)), ("".join(gathered),))
                gathered, size, first = [], 0, 0
        if gathered:
            yield Document("", (str(path), str(first)), ("".join(gathered),))


@dataclass(frozen=True)
class Split:
    """Which documents are held out, chosen as for a training: a share of the text bytes of each domain.

    Attributes:
        fraction: the share. seed: of the choice. heldout: domain → order numbers (`data.split`).
    """

    fraction: float
    seed: int
    heldout: dict[str, frozenset[int]]

    @staticmethod
    def draw(documents: Documents, fraction: float, seed: int) -> "Split":
        """Reads the documents once. Memory: about 100 bytes a document.

        Raises:
            DataError: no domain has two documents, one of which would be held out.
        """
        sizes: dict[str, dict[int, int]] = {}
        for document in documents:
            order = document_order(seed, document.domain, document.source_document)
            of_domain = sizes.setdefault(document.domain, {})
            of_domain[order] = of_domain.get(order, 0) + sum(len(text.encode("utf-8")) for text in document.texts)
        heldout = {  # a domain of one document is counted, not held out
            name: frozenset(choose_heldout(of_domain, fraction) if len(of_domain) > 1 else ())
            for name, of_domain in sizes.items()
        }
        if not any(heldout.values()):
            raise DataError(
                f"the text has {sum(map(len, sizes.values()))} documents, of which none can be held out: two of a "
                "domain are needed. Add text, or separate documents: lines of a jsonl file, blank lines in other files"
            )
        return Split(fraction, seed, heldout)

    @property
    def digest(self) -> str:
        """What decides it, beside the documents."""
        return f"{self.fraction!r} {self.seed}"

    def holds_out(self, document: Document) -> bool:
        order = document_order(self.seed, document.domain, document.source_document)
        return order in self.heldout[document.domain]


def _digest(files: Sequence[Path], settings: Sequence[str]) -> str:
    # a document without names of its own has that of its file, on which the split depends
    names = json.dumps([[str(path) for path in files], list(settings), hash_files(files)])
    return hashlib.blake2b(names.encode(), digest_size=16).hexdigest()


def _decoded(line: bytes, place: str) -> str:
    try:
        return decode_line(line)
    except ValueError as error:
        raise DataError(f"{place}: {error}") from None


def _require_unicode(text: str, place: str) -> None:
    try:
        count_utf8_bytes(text)
    except ValueError as error:
        raise DataError(f"{place}: {error}") from None
