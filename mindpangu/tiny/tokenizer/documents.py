"""The documents in which pieces are counted, from a run's corpus or from any jsonl and text files, and their split."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mindpangu.config import Config
from mindpangu.data.corpus import CorpusReader, expand_patterns
from mindpangu.data.split import choose_heldout, document_order
from mindpangu.display import short_text
from mindpangu.domains import build_domains
from mindpangu.errors import DataError
from mindpangu.files import count_utf8_bytes
from mindpangu.stage import hash_files
from mindpangu.user_input import decode_line, parse_record, text_lines

FIELDS = ("text", "zh", "en")
_MAX_PARAGRAPH = 1 << 16  # characters after which a document of a text file ends without a blank line


@dataclass(frozen=True, slots=True)
class Document:
    """A document: texts that the split keeps together.

    Attributes:
        domain: the document's domain, "" if it has none; a share of each domain is held out.
        source_document: (source, document), as in `data.corpus`.
        texts: the texts of the document, each tokenized on its own.
    """

    domain: str
    source_document: tuple[str, str]
    texts: tuple[str, ...]


class Documents(Protocol):
    """An iterable of documents that can be read repeatedly.

    Attributes:
        total_bytes: size of the files.
        bytes_read: bytes read by the latest iteration.
        left_out: describes what the latest iteration left out; "" if nothing.
        digest: hex hash of the files and of the settings that select text from them.
    """

    @property
    def total_bytes(self) -> int: ...

    @property
    def bytes_read(self) -> int: ...

    @property
    def left_out(self) -> str: ...

    @property
    def digest(self) -> str: ...

    def __iter__(self) -> Iterator[Document]: ...


class RunDocuments:
    """The documents of a run's corpus (data.corpus) in the run's domains.

    Raises:
        DataError: see `CorpusReader`.
    """

    def __init__(self, config: Config):
        self._reader = CorpusReader(config, build_domains(config))
        self.total_bytes = self._reader.total_bytes
        names = [domain.name for domain in self._reader.domains]
        self.digest = _digest(self._reader.files, [config.data.format, *names])

    @property
    def bytes_read(self) -> int:
        return self._reader.bytes_read

    @property
    def left_out(self) -> str:
        report = self._reader.report
        return report.summary() if report.is_partial else ""

    def __iter__(self) -> Iterator[Document]:
        for record in self._reader:
            texts = tuple(text for _, text in record.parts)
            yield Document(self._reader.domains[record.domain_id].name, record.source_document, texts)


class FileDocuments:
    """The documents of any files: each line of a jsonl file, and the paragraphs of any other file.

    Args:
        patterns: glob patterns of the files.
        fields: fields of jsonl records that hold text; a record may lack some of them.

    Raises:
        DataError: a pattern matches no file; while reading: a file cannot be read, or a line is not a JSON object or
            has none of the fields.
    """

    def __init__(self, patterns: Sequence[str], fields: Sequence[str] = FIELDS):
        self._files = expand_patterns(patterns, "--corpus")
        self._fields = tuple(fields)
        self.total_bytes = sum(path.stat().st_size for path in self._files)
        self.bytes_read = 0
        self._fields_without_text = 0
        self.digest = _digest(self._files, self._fields)

    @property
    def left_out(self) -> str:
        count = self._fields_without_text
        return f"{count:,} fields with numbers, lists, or objects instead of text" if count else ""

    def __iter__(self) -> Iterator[Document]:
        self.bytes_read = 0
        self._fields_without_text = 0
        for path in self._files:
            try:
                yield from (self._records if path.suffix == ".jsonl" else self._paragraphs)(path, text_lines(path))
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}") from None
            except UnicodeError as error:
                raise DataError(f"{path} is {error}") from None

    def _records(self, path: Path, lines: Iterable[bytes]) -> Iterator[Document]:
        for line_number, line in enumerate(lines, start=1):
            self.bytes_read += len(line)
            if line.isspace():
                continue
            location = f"{path}:{line_number}"
            try:
                record = parse_record(_decode(line, location))
            except ValueError as error:
                raise DataError(f"{location}: {error}; a jsonl file has one JSON object per line") from None
            values = [record[name] for name in self._fields if record.get(name) is not None]
            texts = tuple(value for value in values if isinstance(value, str))
            self._fields_without_text += len(values) - len(texts)
            if not texts:
                found = ", ".join(map(short_text, list(record)[:20])) or "none"
                raise DataError(
                    f"{location}: no text in the fields {', '.join(self._fields)}; this record has {found}. Name those "
                    "that hold text with --fields"
                )
            for text in texts:
                _require_unicode(text, location)
            source = record.get("source")
            doc = record.get("doc")
            source_document = (str(path) if source is None else str(source), location if doc is None else str(doc))
            yield Document(str(record.get("domain", "")), source_document, texts)

    def _paragraphs(self, path: Path, lines: Iterable[bytes]) -> Iterator[Document]:
        paragraph: list[str] = []
        size = 0
        first_line = 0
        for line_number, line in enumerate(lines, start=1):
            self.bytes_read += len(line)
            text = _decode(line, f"{path}:{line_number}")
            if not text.isspace():
                first_line = first_line or line_number
                paragraph.append(text)
                size += len(text)
            if paragraph and (text.isspace() or size > _MAX_PARAGRAPH):
                yield Document("", (str(path), str(first_line)), ("".join(paragraph),))
                paragraph = []
                size = 0
                first_line = 0
        if paragraph:
            yield Document("", (str(path), str(first_line)), ("".join(paragraph),))


@dataclass(frozen=True)
class Split:
    """The split into training and held-out documents, drawn as for a training: by a share of each domain's text bytes.

    Attributes:
        fraction: share that is held out.
        seed: seed of the split.
        heldout: domain → order numbers of its held-out documents (`data.split`).
    """

    fraction: float
    seed: int
    heldout: dict[str, frozenset[int]]

    @staticmethod
    def draw(documents: Documents, fraction: float, seed: int) -> "Split":
        """Reads the documents once and draws the held-out ones. Takes about 100 bytes of memory per document.

        Raises:
            DataError: no domain has the two documents that it takes to hold one out.
        """
        sizes: dict[str, dict[int, int]] = {}
        for document in documents:
            order = document_order(seed, document.domain, document.source_document)
            domain_sizes = sizes.setdefault(document.domain, {})
            num_bytes = sum(len(text.encode("utf-8")) for text in document.texts)
            domain_sizes[order] = domain_sizes.get(order, 0) + num_bytes
        heldout = {  # the only document of a domain is never held out
            name: frozenset(choose_heldout(domain_sizes, fraction) if len(domain_sizes) > 1 else ())
            for name, domain_sizes in sizes.items()
        }
        if not any(heldout.values()):
            raise DataError(
                f"the text has {sum(map(len, sizes.values()))} documents, and none can be held out: a domain needs "
                "two. Add text, or separate the documents: by lines in a jsonl file, by blank lines in other files"
            )
        return Split(fraction, seed, heldout)

    @property
    def digest(self) -> str:
        """The settings that the split depends on, in addition to the documents."""
        return f"{self.fraction!r} {self.seed}"

    def is_heldout(self, document: Document) -> bool:
        """True if the document is held out."""
        order = document_order(self.seed, document.domain, document.source_document)
        return order in self.heldout[document.domain]


def _digest(files: Sequence[Path], settings: Sequence[str]) -> str:
    # the paths count because the split depends on them: a document without a name is named after its file
    names = json.dumps([[str(path) for path in files], list(settings), hash_files(files)])
    return hashlib.blake2b(names.encode(), digest_size=16).hexdigest()


def _decode(line: bytes, location: str) -> str:
    try:
        return decode_line(line)
    except ValueError as error:
        raise DataError(f"{location}: {error}") from None


def _require_unicode(text: str, location: str) -> None:
    try:
        count_utf8_bytes(text)
    except ValueError as error:
        raise DataError(f"{location}: {error}") from None
