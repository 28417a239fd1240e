"""Parses input from the command line: files of prompts or of records to answer, and memory sizes."""

import re
from pathlib import Path
from typing import Any

from mindpangu.display import describe_error, short_repr
from mindpangu.errors import GenerationError
from mindpangu.untrusted import read_user_file
from mindpangu.user_input import decode_text, parse_record

_FILE_LIMIT = 1 << 28  # bytes
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

HELDOUT_PROMPT_RULE = 2
"""Version of the rule by which `generator.heldout_prompt` cuts a prompt from held-out text; results record it. Rule 1
decoded and re-encoded the tokens, which lost control tokens, and could run into the next document."""

Prompt = str | dict[str, Any]
"""A text, or an instruction record (`data.instruction`) without its answer."""


def read_prompts(path: Path, domain: str | None) -> list[tuple[str, Prompt]]:
    """Reads (domain, prompt) from each line of a file.

    Args:
        path: a *.jsonl file, whose records have "prompt", or "task" and its fields, and may have "domain". Any other
            file, or a pipe, has one prompt per line, in which \\n is a newline and \\t a tab.
        domain: domain of prompts that do not name one.

    Raises:
        GenerationError: the file cannot be read, or a line is not a prompt or has no domain.
    """
    try:
        text = decode_text(read_user_file(path, _FILE_LIMIT))
    except UnicodeError as error:
        raise GenerationError(f"--prompts {path} is {error}") from None
    except (OSError, ValueError) as error:
        raise GenerationError(f"--prompts {path} cannot be read: {describe_error(error)}") from None
    prompts = []
    for line_number, line in enumerate(re.split("\r\n?|\n", text), 1):  # not splitlines: a text may hold U+2028
        if not line.strip():
            continue
        prompt: Prompt
        if path.suffix == ".jsonl":
            own_domain, prompt = _record(path, line_number, line)
            name = own_domain or domain
        else:
            prompt = _unescape(line)
            name = domain
        if name is None:
            raise GenerationError(f"{path}:{line_number} names no domain; give --domain NAME for those that do not")
        prompts.append((name, prompt))
    return prompts


def memory_size(text: str) -> int:
    """Parses "2GB", "1.5 GiB", "500MB" or a plain number of bytes. Raises GenerationError for anything else."""
    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in _UNITS or float(match[1]) == 0:
        raise GenerationError(f"--expert-memory is {text!r}; allowed: a size like 500MB, 2GB or 1.5GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _record(path: Path, line_number: int, line: str) -> tuple[str | None, Prompt]:
    try:
        record = parse_record(line)
    except ValueError as error:
        raise GenerationError(f"{path}:{line_number}: {error}") from None
    is_task = "task" in record
    if not is_task and not isinstance(record.get("prompt"), str):
        raise GenerationError(f'{path}:{line_number} has neither a "prompt" that is a text nor a "task"')
    if not isinstance(record.get("domain", ""), str):
        raise GenerationError(f'{path}:{line_number}: "domain" is {short_repr(record["domain"])}; it must be a name')
    return record.get("domain"), record if is_task else record["prompt"]


def _unescape(line: str) -> str:
    known = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}
    return re.sub(r"\\[nt\\]", lambda match: known[match[0]], line)
