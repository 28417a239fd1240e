"""What the command line is given: files of prompts and records to answer, and sizes of memory."""

import json
import re
from pathlib import Path
from typing import Any

from mindpangu.errors import GenerationError

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


Prompt = str | dict[str, Any]
"""A text, or an instruction record (`data.instruction`) without its answer."""


def read_prompts(path: Path, domain: str | None) -> list[tuple[str, Prompt]]:
    """(domain, prompt) of each line of a file.

    Args:
        path: *.jsonl, whose records have "prompt", or "task" and what it takes, and may have "domain"; any other file
            has a prompt a line, in which \\n stands for a new line and \\t for a tab.
        domain: of prompts that name none.

    Raises:
        GenerationError: a file that cannot be read, or a line that is no prompt or has no domain.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: a text may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise GenerationError(f"--prompts {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, prompt = _record(path, number, line) if path.suffix == ".jsonl" else (None, _unescaped(line))
        if (name or domain) is None:
            raise GenerationError(f"{path}:{number} names no domain; give --domain NAME for those that do not")
        prompts.append((name or domain, prompt))
    return prompts


def memory_size(text: str) -> int:
    """Bytes of "2GB", "1.5 GiB", "500MB" or a plain number. Raises GenerationError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in _UNITS or float(match[1]) == 0:
        raise GenerationError(f"--expert-memory is {text!r}; allowed: a size like 500MB, 2GB or 1.5GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _record(path: Path, number: int, line: str) -> tuple[str | None, Prompt]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise GenerationError(f"{path}:{number} is not JSON: {error}") from None
    is_task = isinstance(record, dict) and "task" in record
    if not is_task and not (isinstance(record, dict) and isinstance(record.get("prompt"), str)):
        raise GenerationError(f'{path}:{number} has no "prompt" that is a text, and no "task"')
    if not isinstance(record.get("domain", ""), str):
        raise GenerationError(f'{path}:{number}: "domain" is {record["domain"]!r}; it must be a name')
    return record.get("domain"), record if is_task else record["prompt"]


def _unescaped(line: str) -> str:
    known = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}
    return re.sub(r"\\[nt\\]", lambda match: known[match[0]], line)
