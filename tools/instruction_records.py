"""Turns public fine-tuning files into instruction records (docs/finetune.md), one JSON object a line.

    python tools/instruction_records.py kdconv film/dev.json film.jsonl
    python tools/instruction_records.py tatoeba cmn.txt translation.jsonl
    python tools/instruction_records.py mbpp mbpp.jsonl code.jsonl

    kdconv    KdConv's dialogues: [{"messages": [{"message": text}, …]}, …]
    lccc      LCCC's and CDial-GPT's: [[text, …], …] or {"train": [[text, …], …], …}, signs separated by blanks
    tatoeba   sentence pairs: English, tab, Chinese; a pair gives a record in each direction
    mbpp      Mostly Basic Python Problems: the full jsonl, or the sanitized JSON
    alpaca    instruction, input and output as a JSON list, or Self-Instruct's seed tasks as jsonl

Reads as a stream, so memory does not grow with the file. OUT appears only when all of SOURCE was read. A long dialogue
becomes several records, which are held out together, as are the translations of one sentence.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from mindpangu.files import scratch_file

_CHUNK = 1 << 20
# LCCC separates signs by blanks; between words of Latin letters they are real
_BLANK_BESIDE_A_SIGN = re.compile(r"(?<=[^\x00-\x7f]) | (?=[^\x00-\x7f])")
_BLANKS = re.compile(r"\s*")
_CHINESE = re.compile(r"[\u3400-\u9fff]")

Record = dict[str, Any]


class OtherForm(Exception):
    """A file that is not what was asked for. The message is for the user."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("source", metavar="SOURCE", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path, help="a jsonl file, replaced if it is there")
    parser.add_argument(
        "--domain", help="domain of the records; default: zh, bilingual, code; alpaca: zh or en by text"
    )
    parser.add_argument("--turns", type=int, default=4, help="dialogues: texts of a record, even; default: %(default)s")
    parser.add_argument("--tests", type=int, default=1, help="mbpp: tests shown in the task; default: %(default)s")
    options = parser.parse_args()
    if options.turns < 2 or options.turns % 2:
        parser.error(f"--turns is {options.turns}; allowed: even numbers from 2 on, as every text has its reply")
    if options.tests < 0:
        parser.error(f"--tests is {options.tests}; allowed: 0 and more")
    try:
        with scratch_file(options.out) as scratch:
            items, records = convert(options, scratch)
    except OtherForm as error:
        sys.exit(f"error: {options.source}: {error}")
    except UnicodeDecodeError as error:
        sys.exit(f"error: {options.source} is not UTF-8 text (byte {error.start} of a piece of it)")
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")
    print(f"{items:,} items, {records:,} records → {options.out}")


def convert(options: argparse.Namespace, out: Path) -> tuple[int, int]:
    """Writes the records of a source; returns how many items were read and how many records were made of them.

    Raises:
        OtherForm: the source is not of this kind; names the item and what is wrong with it.
    """
    read, make = KINDS[options.kind]
    items = records = 0
    with open(out, "w", encoding="utf-8") as file:
        for items, item in enumerate(read(options.source), start=1):
            try:
                made = list(make(item, options))
            except (KeyError, TypeError, IndexError, AttributeError) as error:
                raise OtherForm(
                    f"item {items} is not of the kind {options.kind} ({error!r}): {str(item)[:80]}"
                ) from None
            for record in made:
                default = {"source": options.source.name, "doc": str(items)}
                file.write(json.dumps(default | record, ensure_ascii=False) + "\n")
                records += 1
    if records == 0:
        raise OtherForm(f"there is nothing of the kind {options.kind} in it")
    return items, records


# ---- One item of a source → its records ------------------------------------------------------------------------------


def kdconv(dialogue: Record, options: argparse.Namespace) -> Iterator[Record]:
    yield from _dialogue([message["message"] for message in dialogue["messages"]], options)


def lccc(dialogue: list[str], options: argparse.Namespace) -> Iterator[Record]:
    if not isinstance(dialogue, list):
        raise TypeError("not a list of texts")
    yield from _dialogue([_BLANK_BESIDE_A_SIGN.sub("", text) for text in dialogue], options)


def tatoeba(line: str, options: argparse.Namespace) -> Iterator[Record]:
    english, chinese = line.split("\t")[:2] if "\t" in line else (None, None)
    if not (english and chinese):
        raise TypeError("no two sentences with a tab between them")
    # all translations of a sentence are of one document: none is trained on while another one is held out
    about = {"domain": options.domain or "bilingual", "task": "translation", "doc": english}
    yield about | {"from": "en", "to": "zh", "text": english, "translation": chinese}
    yield about | {"from": "zh", "to": "en", "text": chinese, "translation": english}


def mbpp(problem: Record, options: argparse.Namespace) -> Iterator[Record]:
    task = problem["text"] if "text" in problem else problem["prompt"]
    lines = [task.strip(), *problem["test_list"][: options.tests]]
    yield {
        "domain": options.domain or "code",
        "task": "code",
        "lang": "python",
        "instruction": "\n".join(lines),
        "answer": problem["code"].replace("\r\n", "\n").strip(),
    }


def alpaca(item: Record, options: argparse.Namespace) -> Iterator[Record]:
    for instance in item.get("instances", [item]):
        question, answer = item["instruction"].strip(), instance["output"].strip()
        if answer:
            language = "zh" if _CHINESE.search(question) else "en"
            record = {"domain": options.domain or language, "task": "qa", "question": question, "answer": answer}
            yield record | ({"context": instance["input"].strip()} if instance["input"].strip() else {})


def _dialogue(turns: list[str], options: argparse.Namespace) -> Iterator[Record]:
    """Runs of an even number of texts, so that each has its reply; a last one without a reply is left out."""
    turns = [turn.strip() for turn in turns]
    for start in range(0, len(turns) // 2 * 2, options.turns):
        part = turns[start : min(start + options.turns, len(turns) // 2 * 2)]
        if all(part):
            yield {"domain": options.domain or "zh", "task": "dialogue", "turns": part}


# ---- A source → its items, read as a stream --------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            if not line.isspace():
                yield line.rstrip("\r\n")


def _json_values(path: Path) -> Iterator[Any]:
    """The values of a jsonl file, or the elements of a JSON list, or those of all lists in a JSON object."""
    if path.suffix == ".jsonl":
        for number, line in enumerate(_lines(path), start=1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise OtherForm(f"item {number} is not JSON ({error})") from None
        return
    with open(path, encoding="utf-8") as file:
        yield from _JsonText(file).lists()


class _JsonText:
    """A JSON text of which one element at a time is in memory."""

    def __init__(self, file: TextIO):
        self._file, self._text, self._at, self._decode = file, "", 0, json.JSONDecoder().raw_decode

    def lists(self) -> Iterator[Any]:
        if self._peek() != "{":
            yield from self._elements()
            return
        self._take("{")
        while True:
            self._value()  # the list's name
            self._take(":")
            yield from self._elements()
            if self._peek() != ",":
                return
            self._take(",")

    def _elements(self) -> Iterator[Any]:
        self._take("[")
        while self._peek() != "]":
            yield self._value()
            if self._peek() != "]":
                self._take(",")
        self._take("]")

    def _peek(self) -> str:
        """The next sign; empty at the end."""
        while True:
            self._at = _BLANKS.match(self._text, self._at).end()
            if self._at < len(self._text) or not self._read():
                return self._text[self._at : self._at + 1]

    def _take(self, sign: str) -> None:
        if self._peek() != sign:
            here = self._text[self._at : self._at + 40]
            raise OtherForm(f"not a JSON list, nor an object of lists: {sign!r} expected before {here!r}")
        self._at += 1

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, self._at = self._decode(self._text, self._at)
                return value
            except ValueError as error:
                if not self._read():
                    raise OtherForm(f"not JSON ({error}): {self._text[self._at : self._at + 40]!r}") from None

    def _read(self) -> bool:
        """Forgets what was used and reads a piece more; False at the end."""
        piece = self._file.read(_CHUNK)
        self._text, self._at = self._text[self._at :] + piece, 0
        return bool(piece)


KINDS: dict[str, tuple[Callable[[Path], Iterator[Any]], Callable[..., Iterator[Record]]]] = {
    "kdconv": (_json_values, kdconv),
    "lccc": (_json_values, lccc),
    "tatoeba": (_lines, tatoeba),
    "mbpp": (_json_values, mbpp),
    "alpaca": (_json_values, alpaca),
}


if __name__ == "__main__":
    main()
