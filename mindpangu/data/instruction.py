"""Records to fine-tune on (data.format: instruction), and how each becomes one sample whose answers alone count.

    task          fields                                   document; what counts is in [ ], ⏎ is a newline
    dialogue      {"turns": [text, reply, text, reply]}    <cn> 问：text⏎答： [reply <eot>] ⏎问：text⏎答： [reply <eot>]
    qa            {"question", "answer", "context"?}       <cn> context⏎问：question⏎答： [answer <eot>]
    translation   {"text", "translation", "from", "to"}    <cn> text <en> [translation <eot>]
    code          {"instruction", "answer", "lang"?}       <python> Question: instruction⏎Answer:⏎ [answer <eot>]

Every record also has "domain" and "task", and may have "source" and "doc" as in text (`corpus.py`). A domain whose
first control token is another than <cn> has "Question: " and "Answer: " for 问： and 答：, which are PanGu-α's prompts
for such tasks; a translation is spelled like a document of the bilingual domain. The rest is ours.

A document is kept as parts that take turns: what is given, its answer, what is given, its answer, and so on.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mindpangu.data.formats import Parts, language_token, opening_ids, opening_token, text_of
from mindpangu.domains import CHINESE, ENGLISH, Domain
from mindpangu.tokenizer import Tokenizer

_WORDS = dict.fromkeys((CHINESE, ""), ("问：", "答："))  # "": PanGu-α's documents, which no token opens
_OTHER_WORDS = ("Question: ", "Answer: ")
_TOKEN_OF_LANGUAGE = {"zh": CHINESE, "en": ENGLISH}


def instruction_parts(domain: Domain, record: Mapping[str, Any], answered: bool = True) -> Parts:
    """The parts of a record's document: (control token or "", text), given and answered in turn.

    Args:
        answered: False for a record whose (last) answer is yet to be found: it needs none, and its last part is the
            answer's control token alone.

    Raises:
        ValueError: the record cannot be used; the message is the reason for the report of bad records.
    """
    task = record.get("task")
    if not isinstance(task, str) or task not in _TASKS:
        raise ValueError(f'"task" is {task!r}; known: {", ".join(_TASKS)}')
    return _TASKS[task](domain, record, answered)


def prompt_parts(domain: Domain, record: Mapping[str, Any]) -> Parts:
    """The parts of a record without its answer, e.g. {"task": "qa", "question": …}; a dialogue ends with a text that
    has no reply. ValueError as `instruction_parts`."""
    return instruction_parts(domain, record, answered=False)


def encode_prompt(parts: Parts, tokenizer: Tokenizer, limit: int) -> list[int]:
    """Token ids that an answer continues, as a sample has them before the answer; at most `limit`, see `shorten`."""
    ids, _ = _join(parts, iter(tokenizer.encode_batch([text for _, text in parts], 1)), tokenizer, answered=False)
    return shorten(ids, limit)


def encode_samples(
    documents: Sequence[Parts], tokenizer: Tokenizer, seq_length: int, threads: int = 1
) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], bool]]:
    """(S + 1 token ids, which of them count, whether the document was too long) of each document.

    A short one is padded. Of a long one the beginning of what is given before the first answer goes first, down to half
    of the sample; what is still too long is cut off at the end. So every sample has some of an answer to learn.

    Raises:
        TokenizerError: the tokenizer lacks a control token.
    """
    encoded = iter(tokenizer.encode_batch([text for parts in documents for _, text in parts], threads))
    length, samples = seq_length + 1, []
    for parts in documents:
        ids, counted = _join(parts, encoded, tokenizer, answered=True)
        given, excess = counted.index(1), len(ids) - length
        kept = min(given, max(given - max(excess, 0), length // 2))
        ids, counted = shorten(ids[:given], kept) + ids[given:], [0] * kept + counted[given:]
        ids_T = np.full(length, tokenizer.pad_id, np.int32)
        counted_T = np.zeros(length, np.uint8)
        ids_T[: len(ids)], counted_T[: len(ids)] = ids[:length], counted[:length]
        samples.append((ids_T, counted_T, excess > 0))
    return samples


def first_answer(
    ids_T: npt.NDArray[np.int32], counted_T: npt.NDArray[np.uint8]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of a sample (`encode_samples`): what is given before its first answer, and that answer."""
    first = int(np.argmax(counted_T))
    last = first + int(np.argmin(np.append(counted_T[first:], 0)))
    return tuple(ids_T[:first].tolist()), tuple(ids_T[first:last].tolist())


def shorten(prompt: list[int], limit: int) -> list[int]:
    """The first token, which is the control token, and the last ones of a prompt: `limit` (≥ 1) tokens at most."""
    return prompt if len(prompt) <= limit else [prompt[0], *prompt[len(prompt) - limit + 1 :]]


def _join(parts: Parts, encoded, tokenizer: Tokenizer, answered: bool) -> tuple[list[int], list[int]]:
    """(token ids, which of them count); without `answered` the last answer, which is empty, is not ended."""
    ids, counted = [], []
    for number, (token, _) in enumerate(parts):
        opening, text = opening_ids(token, tokenizer), next(encoded)
        is_answer = number % 2
        if is_answer and (answered or number < len(parts) - 1):
            text = [*text, tokenizer.eot_id]
        ids += [*opening, *text]
        counted += [0] * len(opening) + [is_answer] * len(text)
    return ids, counted


def _dialogue(domain: Domain, record: Mapping[str, Any], answered: bool) -> Parts:
    turns = record.get("turns")
    if not isinstance(turns, list) or not turns:
        raise ValueError('"turns" is not a list of texts' if turns else 'no "turns"')
    turns = [text_of({"turns": turn}, "turns") for turn in turns]
    if len(turns) % 2 == answered:
        raise ValueError(
            f'"turns" has {len(turns)} texts; '
            + ("each second one is a reply" if answered else "the last one has a reply")
        )
    (ask, answer), parts = _words(domain), []
    for start in range(0, len(turns), 2):
        token, line = ("", "\n") if start else (opening_token(domain), "")
        parts += [(token, f"{line}{ask}{turns[start]}\n{answer}"), ("", "".join(turns[start + 1 : start + 2]))]
    return tuple(parts)


def _qa(domain: Domain, record: Mapping[str, Any], answered: bool) -> Parts:
    ask, answer = _words(domain)
    context = f"{text_of(record, 'context')}\n" if record.get("context") else ""
    given = f"{context}{ask}{text_of(record, 'question')}\n{answer}"
    return (opening_token(domain), given), ("", text_of(record, "answer") if answered else "")


def _translation(domain: Domain, record: Mapping[str, Any], answered: bool) -> Parts:
    source, target = (_token_of(domain, record, field) for field in ("from", "to"))
    return (source, text_of(record, "text")), (target, text_of(record, "translation") if answered else "")


def _code(domain: Domain, record: Mapping[str, Any], answered: bool) -> Parts:
    ask, answer = _OTHER_WORDS
    given = f"{ask}{text_of(record, 'instruction')}\n{answer.rstrip()}\n"
    return (language_token(domain, record), given), ("", text_of(record, "answer") if answered else "")


_TASKS: dict[str, Callable[[Domain, Mapping[str, Any], bool], Parts]] = {
    "dialogue": _dialogue,
    "qa": _qa,
    "translation": _translation,
    "code": _code,
}


def _words(domain: Domain) -> tuple[str, str]:
    return _WORDS.get(opening_token(domain), _OTHER_WORDS)


def _token_of(domain: Domain, record: Mapping[str, Any], field: str) -> str:
    language = text_of(record, field)
    token = _TOKEN_OF_LANGUAGE.get(language, f"<{language}>")
    if token not in domain.control_tokens:
        raise ValueError(
            f'"{field}" is {language!r}, but domain {domain.name} has the control tokens '
            f"{', '.join(domain.control_tokens) or 'none'}"
        )
    return token
