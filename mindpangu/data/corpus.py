"""Reading jsonl corpora: one JSON object a line, streamed, with a report of what could not be used.

A record is {"domain": name, …} with the fields of its domain's kind (`formats.py`) or, with data.format instruction, of
its task (`instruction.py`), and optionally "source" and "doc".
Records that share (source, doc) come from one source document and stay on one side of the held-out split (`split.py`);
each record becomes one document of the token stream. "doc" need only be unique within its source; without "source" the
file is the source, without "doc" the record is a source document of its own.
"""

import glob
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindpangu.config import Config
from mindpangu.data.formats import Parts, document_parts
from mindpangu.data.instruction import instruction_parts
from mindpangu.domains import Domain, known_domains
from mindpangu.errors import DataError
from mindpangu.files import count_utf8_bytes, decode_line

_LISTED = 5


@dataclass(frozen=True, slots=True)
class Record:
    """One usable record.

    Attributes:
        domain_id: position of its domain among the run's domains.
        source_document: (source, doc); records that share it are split together.
        parts: its text and the control tokens that open it.
        text_bytes: UTF-8 bytes of the text.
    """

    domain_id: int
    source_document: tuple[str, str]
    parts: Parts
    text_bytes: int


@dataclass
class CorpusReport:
    """What one reading found. `bad_records` names every one as "file:line: reason"; data.max_bad_records bounds it."""

    num_records: int = 0
    num_bad: int = 0
    bad_records: list[str] = field(default_factory=list)
    skipped: Counter = field(default_factory=Counter)
    """Records of the preset's domains that this run leaves out, by domain name; only their domain was looked at."""

    def summary(self) -> str:
        """One line for the log, and one for each listed bad record."""
        skipped = ", ".join(f"{name} {count:,}" for name, count in sorted(self.skipped.items()))
        line = f"{self.num_records:,} records"
        line += f"; skipped, not in domains.names: {skipped}" if skipped else ""
        return line + (f"; {self.listing()}" if self.num_bad else "")

    def listing(self) -> str:
        """The number of bad records and the first few of them."""
        shown = self.bad_records[:_LISTED]
        more = self.num_bad - len(shown)
        return "\n  ".join([f"{self.num_bad:,} bad records:", *shown] + [f"and {more:,} more"] * bool(more))


class CorpusReader:
    """The corpus of a run. Iterating reads it from the start, file by file in sorted order, and renews `report`.

    Attributes:
        domains: the run's domains; a record's domain_id is a position in it.
        files, total_bytes: what is read.
        report: of the latest reading.
        bytes_read: how far that reading is.

    Raises:
        DataError: a pattern of data.corpus matches no file, or, while iterating, a file cannot be read or more than
            data.max_bad_records records are bad.
    """

    def __init__(self, config: Config, domains: Sequence[Domain]):
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
        self.report, self.bytes_read = CorpusReport(), 0
        for path in self.files:
            try:
                yield from self._read(path)
            except OSError as error:
                raise DataError(f"corpus file {path} cannot be read: {error.strerror}; check data.corpus") from None

    def _read(self, path: Path) -> Iterator[Record]:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                self.bytes_read += len(line)
                if line.isspace():  # a blank line is no record
                    continue
                try:
                    record = self._parse(line, path, number)
                except ValueError as error:
                    self._count_bad(f"{path}:{number}: {error}")
                    continue
                if record is not None:
                    self.report.num_records += 1
                    yield record

    def _parse(self, line: bytes, path: Path, number: int) -> Record | None:
        """A record, or None if its domain is not in this run. ValueError gives the reason for a bad one."""
        fields = _json_object(line)
        name = fields.get("domain")
        if not isinstance(name, str) or name not in self._known:
            raise ValueError(f"unknown domain {name!r} (domains.preset is {self.config.domains.preset})")
        if name not in self._ids:
            self.report.skipped[name] += 1
            return None
        domain_id = self._ids[name]
        parts = self._parts(self.domains[domain_id], fields)
        text_bytes = sum(count_utf8_bytes(text) for _, text in parts)
        source = _identifier(fields, "source", str(path))
        doc = _identifier(fields, "doc", f"{path}:{number}")
        return Record(domain_id, (source, doc), parts, text_bytes)

    def _count_bad(self, description: str) -> None:
        report, limit = self.report, self.config.data.max_bad_records
        report.num_bad += 1
        report.bad_records.append(description)
        if report.num_bad > limit:
            raise DataError(
                f"more than data.max_bad_records = {limit} records cannot be used; {report.listing()}\n"
                "Remedy: mend them, or raise data.max_bad_records to skip them."
            )


def expand_patterns(patterns: Sequence[str], option: str = "data.corpus") -> list[Path]:
    """The files that glob patterns match, each once, in sorted order.

    Raises:
        DataError: a pattern matches none; names the option that gave it.
    """
    files: dict[Path, Path] = {}
    for pattern in patterns:
        matches = [Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]
        if not matches:
            raise DataError(
                f"{option} pattern {pattern!r} matches no file (current directory: {Path.cwd()}); give files that exist"
            )
        files |= {path.resolve(): path for path in matches}
    if not files:
        raise DataError(f"{option} is empty; give jsonl files")
    return sorted(files.values())


def _json_object(line: bytes) -> dict[str, Any]:
    text = decode_line(line)
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise ValueError(f"a JSON {type(fields).__name__}, not an object")
    return fields


def _identifier(fields: dict[str, Any], key: str, default: str) -> str:
    value = fields.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f'"{key}" is a {type(value).__name__}, not a string or a whole number')
    return str(value)
