"""Reads jsonl corpora, one JSON object per line, as a stream, and reports unusable records.

A record is {"domain": name, …} with the fields of its domain's kind (`formats.py`) or, if data.format is instruction,
of its task (`instruction.py`), and optionally "source" and "doc". Each record becomes one document of the token stream.
Records with the same (source, doc) come from one source document and stay on one side of the held-out split
(`split.py`). "doc" only needs to be unique within its source. "source" defaults to the file; without "doc", each
record is a source document of its own.
"""

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindpangu.config import Config
from mindpangu.data.formats import Parts, document_parts
from mindpangu.data.instruction import instruction_parts
from mindpangu.display import printable_line, short_lines, short_repr
from mindpangu.domains import Domain, known_domains
from mindpangu.errors import DataError
from mindpangu.files import count_utf8_bytes
from mindpangu.user_input import decode_line, parse_record, text_lines

_MAX_LISTED = 5


@dataclass(frozen=True, slots=True)
class Record:
    """One usable record.

    Attributes:
        domain_id: index of its domain among the run's domains.
        source_document: (source, doc). Records with the same value stay on one side of the split.
        parts: texts and the control tokens that open them.
        text_bytes: number of UTF-8 bytes of the texts.
    """

    domain_id: int
    source_document: tuple[str, str]
    parts: Parts
    text_bytes: int


@dataclass
class CorpusReport:
    """Report on one pass over the corpus. `bad_records` lists "file:line: reason", at most data.max_bad_records + 1."""

    num_records: int = 0
    num_bad: int = 0
    bad_records: list[str] = field(default_factory=list)
    skipped: Counter = field(default_factory=Counter)
    """Number of skipped records by domain name: those of known domains that this run does not have. Only their domain
    was checked."""

    @property
    def is_partial(self) -> bool:
        """True if bad or skipped records were left out."""
        return self.num_bad > 0 or bool(self.skipped)

    def summary(self) -> str:
        """Returns a summary for the log: one line, and one more per listed bad record."""
        skipped = ", ".join(f"{name} {count:,}" for name, count in sorted(self.skipped.items()))
        line = f"{self.num_records:,} records"
        line += f"; skipped, not in domains.names: {skipped}" if skipped else ""
        return line + (f"; {self.listing()}" if self.num_bad else "")

    def listing(self) -> str:
        """Returns the number of bad records and lists the first few."""
        shown = self.bad_records[:_MAX_LISTED]
        more = self.num_bad - len(shown)
        return "\n  ".join([f"{self.num_bad:,} bad records:", *shown] + [f"and {more:,} more"] * bool(more))


class CorpusReader:
    """The corpus of a run. Each iteration reads all files from the start, in sorted order, and starts a new `report`.

    Attributes:
        domains: the run's domains; a record's domain_id is an index into it.
        files, total_bytes: the files and their total size.
        report: report on the latest iteration.
        bytes_read: number of bytes that the latest iteration has read so far.

    Raises:
        DataError: a pattern of data.corpus matches no file; or, during iteration, a file cannot be read or more than
            data.max_bad_records records are bad.
    """

    def __init__(self, config: Config, domains: Sequence[Domain]) -> None:
        self.config = config
        self.domains = tuple(domains)
        self.files = expand_patterns(config.data.corpus)
        self.total_bytes = sum(path.stat().st_size for path in self.files)
        self.report = CorpusReport()
        self.bytes_read = 0
        self._ids = {domain.name: index for index, domain in enumerate(self.domains)}
        self._parts = instruction_parts if config.data.format == "instruction" else document_parts
        self._known = known_domains(config)

    def __iter__(self) -> Iterator[Record]:
        self.report = CorpusReport()
        self.bytes_read = 0
        for path in self.files:
            try:
                yield from self._read(path)
            except OSError as error:
                raise DataError(f"corpus file {path} cannot be read: {error.strerror}; check data.corpus") from None
            except UnicodeError as error:
                raise DataError(f"corpus file {path} is {error}") from None

    def _read(self, path: Path) -> Iterator[Record]:
        for line_number, line in enumerate(text_lines(path), start=1):
            self.bytes_read += len(line)
            if line.isspace():
                continue
            try:
                record = self._parse(line, path, line_number)
            except ValueError as error:
                self._count_bad(f"{path}:{line_number}: {error}")
                continue
            if record is not None:
                self.report.num_records += 1
                yield record

    def _parse(self, line: bytes, path: Path, line_number: int) -> Record | None:
        """Returns a record, or None if its domain is not in this run. Raises ValueError for a bad record."""
        fields = parse_record(decode_line(line))
        name = fields.get("domain")
        if not isinstance(name, str) or name not in self._known:
            raise ValueError(f"unknown domain {short_repr(name)} (domains.preset is {self.config.domains.preset})")
        if name not in self._ids:
            self.report.skipped[name] += 1
            return None
        domain_id = self._ids[name]
        parts = self._parts(self.domains[domain_id], fields)
        text_bytes = sum(count_utf8_bytes(text) for _, text in parts)
        source = _identifier(fields, "source", str(path))
        doc = _identifier(fields, "doc", f"{path}:{line_number}")
        return Record(domain_id, (source, doc), parts, text_bytes)

    def _count_bad(self, description: str) -> None:
        report = self.report
        limit = self.config.data.max_bad_records
        report.num_bad += 1
        report.bad_records.append(short_lines(printable_line(description)))
        if report.num_bad > limit:
            raise DataError(
                f"more than data.max_bad_records = {limit} records cannot be used; {report.listing()}\n"
                "Remedy: fix them, or raise data.max_bad_records to skip them."
            )


def expand_patterns(patterns: Sequence[str], option: str = "data.corpus") -> list[Path]:
    """Returns the files that match any of the glob patterns, each once, in sorted order.

    A pattern that is the exact name of a file matches only that file.

    Raises:
        DataError: a pattern matches no file. The message names `option`, where the pattern comes from.
    """
    files: dict[Path, Path] = {}
    for pattern in patterns:
        # a name may have brackets, as patterns do
        names = [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)
        matches = [Path(name) for name in names if Path(name).is_file()]
        if not matches:
            raise DataError(
                f"{option} pattern {pattern!r} matches no file (current directory: {Path.cwd()}); give files that exist"
            )
        files |= {path.resolve(): path for path in matches}
    if not files:
        raise DataError(f"{option} is empty; give jsonl files")
    return sorted(files.values())


def _identifier(fields: dict[str, Any], key: str, default: str) -> str:
    value = fields.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f'"{key}" has type {type(value).__name__}, expected a string or an integer')
    return str(value)
