"""Turns a record into a document of token ids, depending on the kind of its domain.

    monolingual   {"text"}             <lang> text <eot>      no <lang> if the domain has no token, as in PanGu-α
    bilingual     {"zh", "en"}         <cn> zh <en> en <eot>
    code          {"text", "lang"}     <lang> code <eot>      e.g. <python>; the domain's first language if no "lang"

PanGu-Σ (section on data) inserts control tokens for languages and code and an `<EOT>`, and concatenates the documents.
The spelling of the tokens and the leading token of monolingual documents are ours. The domain id is not a token; it is
stored with the sample.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mindpangu.display import short_repr
from mindpangu.domains import Domain
from mindpangu.tokenizer import Tokenizer

Parts = tuple[tuple[str, str], ...]
"""A document before tokenization: (control token or "", text) for each part."""

_TEXT_FIELDS = {"monolingual": ("text",), "bilingual": ("zh", "en"), "code": ("text",)}


def document_parts(domain: Domain, record: Mapping[str, Any]) -> Parts:
    """Returns the parts of a record's document.

    Raises:
        ValueError: the record has no usable text, or names a programming language that the domain lacks. The report of
            bad records quotes the message.
    """
    texts = [text_of(record, field) for field in _TEXT_FIELDS[domain.kind]]
    tokens = (language_token(domain, record),) if domain.kind == "code" else domain.control_tokens or ("",)
    return tuple(zip(tokens, texts, strict=True))


def encode_documents(documents: Sequence[Parts], tokenizer: Tokenizer, threads: int = 1) -> list[list[int]]:
    """Returns the token ids of each document, including `<eot>`.

    Raises:
        TokenizerError: the tokenizer lacks a control token.
    """
    encoded = iter(tokenizer.encode_batch([text for parts in documents for _, text in parts], threads))
    result = []
    for parts in documents:
        ids = []
        for token, _ in parts:
            ids += opening_ids(token, tokenizer)
            ids += next(encoded)
        ids.append(tokenizer.eot_id)
        result.append(ids)
    return result


def opening_ids(token: str, tokenizer: Tokenizer) -> list[int]:
    """Returns the id of the control token that opens a part, as a list; an empty list for ""."""
    return [tokenizer.control_id(token)] if token else []


def prompt_ids(domain: Domain, text: str, tokenizer: Tokenizer) -> list[int]:
    """Returns the token ids of a prompt to continue: the domain's first control token and the text, without `<eot>`."""
    return [*opening_ids(opening_token(domain), tokenizer), *tokenizer.encode(text)]


def opening_token(domain: Domain) -> str:
    """Returns the control token that opens the domain's documents, or "" if it has none."""
    return domain.control_tokens[0] if domain.control_tokens else ""


def text_of(record: Mapping[str, Any], field: str) -> str:
    """Returns the text of a field. Raises ValueError if there is none."""
    text = record.get(field)
    if text is None:
        raise ValueError(f'no "{field}"')
    if not isinstance(text, str):
        raise ValueError(f'"{field}" has type {type(text).__name__}, expected a string')
    if not text.strip():
        raise ValueError(f'"{field}" is empty')
    return text


def language_token(domain: Domain, record: Mapping[str, Any]) -> str:
    """Returns the control token of "lang", by default the domain's first. Raises ValueError for an unknown one."""
    language = record.get("lang")
    if language is None:
        return opening_token(domain)
    token = f"<{language}>"
    if token not in domain.control_tokens:
        known = ", ".join(token.strip("<>") for token in domain.control_tokens)
        raise ValueError(f'unknown "lang" {short_repr(language)}; domain {domain.name} has: {known}')
    return token
