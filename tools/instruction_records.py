"""Converts public fine-tuning files into instruction records (docs/finetune.md), one JSON object per line.

    python tools/instruction_records.py kdconv film/dev.json film.jsonl
    python tools/instruction_records.py tatoeba cmn.txt translation.jsonl
    python tools/instruction_records.py mbpp mbpp.jsonl code.jsonl

    kdconv    KdConv's dialogues: [{"messages": [{"message": text}, …]}, …]
    lccc      dialogues of LCCC and CDial-GPT, with characters separated by blanks: [[text, …], …] or
              {"train": [[text, …], …], …}
    tatoeba   sentence pairs (English, tab, Chinese); each pair gives a record in both directions
    mbpp      Mostly Basic Python Problems: the full jsonl or the sanitized JSON
    alpaca    instruction, input, and output as a JSON list, or Self-Instruct's seed tasks as jsonl

SOURCE is read as a stream, so memory does not grow with the file. OUT appears only after SOURCE was read completely. A
long dialogue becomes several records, which are held out together, as are the translations of one sentence.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from mindpangu.cli.programs import run_program
from mindpangu.files import scratch_file
from mindpangu.untrusted import STREAM_DECODER, parse_json
from mindpangu.user_input import decode_line, text_lines

_CHUNK = 1 << 20
_LONGEST_ITEM = 1 << 26  # characters
# LCCC separates Chinese characters by blanks; blanks between words of Latin letters are real
_BLANK_BESIDE_A_CHARACTER = re.compile(r"(?<=[^\x00-\x7f]) | (?=[^\x00-\x7f])")
_BLANKS = re.compile(r"\s*")
_CHINESE = re.compile(r"[\u3400-\u9fff]")

Record = dict[str, Any]


class WrongFormat(Exception):
    """Raised if a file does not have the requested format. The message is for the user."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS, help="format of SOURCE, see above")
    parser.add_argument("source", metavar="SOURCE", type=Path, help="the file to convert")
    parser.add_argument("out", metavar="OUT", type=Path, help="the jsonl file to write; an existing file is replaced")
    parser.add_argument(
        "--domain", help="domain of the records; default: zh, bilingual, or code by kind; alpaca: zh or en by text"
    )
    parser.add_argument("--turns", type=int, default=4, help="dialogues: texts per record, even; default: %(default)s")
    parser.add_argument("--tests", type=int, default=1, help="mbpp: tests shown per task; default: %(default)s")

    options = parser.parse_args()
    if options.turns < 2 or options.turns % 2:
        parser.error(f"--turns is {options.turns}; allowed: even numbers >= 2, as every text has a reply")
    if options.tests < 0:
        parser.error(f"--tests is {options.tests}; allowed: >= 0")
    if options.out.resolve() == options.source.resolve():
        parser.error(f"{options.out} is the file to convert, and would be replaced; give another OUT")
    try:
        with scratch_file(options.out) as scratch:
            num_items, num_records = convert(options, scratch)
    except WrongFormat as error:
        sys.exit(f"error: {options.source}: {error}")
    except UnicodeDecodeError as error:
        sys.exit(f"error: {options.source} is not UTF-8 text (byte {error.start} of a chunk)")
    except UnicodeError as error:
        sys.exit(f"error: {options.source} is {error}")
    print(f"{num_items:,} items, {num_records:,} records → {options.out}")


def convert(options: argparse.Namespace, out: Path) -> tuple[int, int]:
    """Writes the records of a source. Returns the number of items read and the number of records written.

    Raises:
        WrongFormat: the source does not have this format. The message names the item and the problem.
    """
    read, make_records = KINDS[options.kind]
    num_items = 0
    num_records = 0
    with open(out, "x", encoding="utf-8") as file:
        for item in read(options.source):
            num_items += 1
            try:
                records = list(make_records(item, options))
            except (KeyError, TypeError, IndexError, AttributeError) as error:
                raise WrongFormat(
                    f"item {num_items} is not of the kind {options.kind} ({error!r}): {str(item)[:80]}"
                ) from None
            for record in records:
                default = {"source": options.source.name, "doc": str(num_items)}
                try:
                    file.write(json.dumps(default | record, ensure_ascii=False) + "\n")
                except UnicodeEncodeError:
                    raise WrongFormat(f"item {num_items} has a lone surrogate, which is not valid Unicode") from None
                num_records += 1
    if num_records == 0:
        raise WrongFormat(f"it has no items of the kind {options.kind}")
    return num_items, num_records


# ---- Item → records --------------------------------------------------------------------------------------------------


def kdconv(dialogue: Record, options: argparse.Namespace) -> Iterator[Record]:
    yield from _dialogue([message["message"] for message in dialogue["messages"]], options)


def lccc(dialogue: list[str], options: argparse.Namespace) -> Iterator[Record]:
    if not isinstance(dialogue, list):
        raise TypeError("not a list of texts")
    yield from _dialogue([_BLANK_BESIDE_A_CHARACTER.sub("", text) for text in dialogue], options)


def tatoeba(line: str, options: argparse.Namespace) -> Iterator[Record]:
    english, chinese = line.split("\t")[:2] if "\t" in line else (None, None)
    if not (english and chinese):
        raise TypeError("not two sentences separated by a tab")
    # all translations of a sentence belong to one document, so they are held out together
    common = {"domain": options.domain or "bilingual", "task": "translation", "doc": english}
    yield common | {"from": "en", "to": "zh", "text": english, "translation": chinese}
    yield common | {"from": "zh", "to": "en", "text": chinese, "translation": english}


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
        question = item["instruction"].strip()
        answer = instance["output"].strip()
        if answer:
            language = "zh" if _CHINESE.search(question) else "en"
            record = {"domain": options.domain or language, "task": "qa", "question": question, "answer": answer}
            yield record | ({"context": instance["input"].strip()} if instance["input"].strip() else {})


def _dialogue(turns: list[str], options: argparse.Namespace) -> Iterator[Record]:
    """Cuts a dialogue into records of an even number of texts, and drops a last text without a reply."""
    turns = [turn.strip() for turn in turns]
    end = len(turns) // 2 * 2
    for start in range(0, end, options.turns):
        texts = turns[start : min(start + options.turns, end)]
        if all(texts):
            yield {"domain": options.domain or "zh", "task": "dialogue", "turns": texts}


# ---- Source → items, as a stream -------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[str]:
    for number, line in enumerate(text_lines(path), start=1):
        if not line.isspace():
            try:
                yield decode_line(line).rstrip("\r\n")
            except ValueError as error:
                raise WrongFormat(f"line {number} is {error}") from None


def _json_values(path: Path) -> Iterator[Any]:
    """Yields the values of a jsonl file, the elements of a JSON list, or those of all lists in a JSON object."""
    if path.suffix == ".jsonl":
        for item_number, line in enumerate(_lines(path), start=1):
            try:
                yield parse_json(line)
            except ValueError as error:
                raise WrongFormat(f"item {item_number}: {error}") from None
        return
    with open(path, encoding="utf-8-sig") as file:
        yield from _JsonText(file).lists()


class _JsonText:
    """A JSON text that is parsed one element at a time.

    `_text` is the part of the file that is in memory, and `_at` is the position in it.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._at = 0

    def lists(self) -> Iterator[Any]:
        """Yields the elements of a list, or of all lists in an object."""
        if self._peek() == "{":
            yield from self._lists_of_object()
        else:
            yield from self._elements()
        if self._peek():
            raise WrongFormat(f"there is more after its end: {self._text[self._at : self._at + 40]!r}")

    def _lists_of_object(self) -> Iterator[Any]:
        self._take("{")
        while True:
            self._value()  # the list's name
            self._take(":")
            yield from self._elements()
            if self._peek() != ",":
                break
            self._take(",")
        self._take("}")

    def _elements(self) -> Iterator[Any]:
        self._take("[")
        while self._peek() != "]":
            yield self._value()
            if self._peek() != "]":
                self._take(",")
        self._take("]")

    def _peek(self) -> str:
        """Returns the next character that is not whitespace, or "" at the end."""
        while True:
            blanks = _BLANKS.match(self._text, self._at)
            assert blanks is not None  # it also matches nothing
            self._at = blanks.end()
            if self._at < len(self._text) or not self._read():
                return self._text[self._at : self._at + 1]

    def _take(self, character: str) -> None:
        if self._peek() != character:
            here = self._text[self._at : self._at + 40]
            raise WrongFormat(f"neither a JSON list nor an object of lists: {character!r} expected before {here!r}")
        self._at += 1

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, self._at = STREAM_DECODER.raw_decode(self._text, self._at)
                return value
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > _LONGEST_ITEM or not self._read():
                    raise WrongFormat(f"not JSON ({error}): {self._text[self._at : self._at + 40]!r}") from None
            except RecursionError:
                raise WrongFormat("an item is nested too deeply") from None
            except ValueError as error:
                raise WrongFormat(f"an item cannot be used: {error}") from None

    def _read(self) -> bool:
        """Drops the parsed text and reads as much as is left of it again, or a chunk. Returns False at the end."""
        chunk = self._file.read(max(_CHUNK, len(self._text) - self._at))
        self._text = self._text[self._at :] + chunk
        self._at = 0
        return bool(chunk)


KINDS: dict[str, tuple[Callable[[Path], Iterator[Any]], Callable[..., Iterator[Record]]]] = {
    "kdconv": (_json_values, kdconv),
    "lccc": (_json_values, lccc),
    "tatoeba": (_lines, tatoeba),
    "mbpp": (_json_values, mbpp),
    "alpaca": (_json_values, alpaca),
}


if __name__ == "__main__":
    run_program(main)
