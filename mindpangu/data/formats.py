"""How a record of each kind of domain becomes one document of token ids.

    monolingual   {"text"}             <lang> text <eot>      without <lang> if the domain has no token, as PanGu-α
    bilingual     {"zh", "en"}         <cn> zh <en> en <eot>
    code          {"text", "lang"}     <lang> code <eot>      e.g. <python>; without "lang" the domain's first language

PanGu-Σ (section on data) inserts language or code control tokens and an `<EOT>` and then
concatenates. That much is published. Ours are the spellings of the tokens and the leading token of monolingual
documents. The domain id is no token: it travels beside the sample.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mindpangu.domains import Domain
from mindpangu.tokenizer import Tokenizer

Parts = tuple[tuple[str, str], ...]
"""A document before tokenization: (control token that opens the part, "" for none; text of the part)."""

_TEXT_FIELDS = {"monolingual": ("text",), "bilingual": ("zh", "en"), "code": ("text",)}


def document_parts(domain: Domain, record: Mapping[str, Any]) -> Parts:
    """The parts of a record's document.

    Raises:
        ValueError: the record has no usable text, or names a programming language that the domain lacks. Its message
            is the reason for the report of bad records.
    """
    texts = [text_of(record, field) for field in _TEXT_FIELDS[domain.kind]]
    tokens = (language_token(domain, record),) if domain.kind == "code" else domain.control_tokens or ("",)
    return tuple(zip(tokens, texts, strict=True))


def encode_documents(documents: Sequence[Parts], tokenizer: Tokenizer, threads: int = 1) -> list[list[int]]:
    """Token ids of each document, `<eot>` included.

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
    """The ids before a part that a control token opens: one, or none for ""."""
    return [tokenizer.control_id(token)] if token else []


def prompt_ids(domain: Domain, text: str, tokenizer: Tokenizer) -> list[int]:
    """Token ids that a continuation of `text` starts from: the domain's first control token, the text, no `<eot>`."""
    return [*opening_ids(opening_token(domain), tokenizer), *tokenizer.encode(text)]


def opening_token(domain: Domain) -> str:
    """The control token that opens the domain's documents, or "" for a domain without one."""
    return domain.control_tokens[0] if domain.control_tokens else ""


def text_of(record: Mapping[str, Any], field: str) -> str:
    """A field's text. ValueError if there is none."""
    text = record.get(field)
    if text is None:
        raise ValueError(f'no "{field}"')
    if not isinstance(text, str):
        raise ValueError(f'"{field}" is a {type(text).__name__}, not a string')
    if not text.strip():
        raise ValueError(f'"{field}" is empty')
    return text


def language_token(domain: Domain, record: Mapping[str, Any]) -> str:
    """The control token of "lang", or the domain's first. ValueError for a language that the domain lacks."""
    language = record.get("lang")
    if language is None:
        return opening_token(domain)
    token = f"<{language}>"
    if token not in domain.control_tokens:
        known = ", ".join(token.strip("<>") for token in domain.control_tokens)
        raise ValueError(f'unknown "lang" {language!r}; domain {domain.name} has: {known}')
    return token
