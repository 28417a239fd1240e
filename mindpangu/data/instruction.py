"""Turns records for fine-tuning (data.format: instruction) into samples in which only the answers count in the loss.

    task          fields                                   document; tokens in [ ] count, ⏎ is a newline
    dialogue      {"turns": [text, reply, text, reply]}    <cn> 问：text⏎答： [reply <eot>] ⏎问：text⏎答： [reply <eot>]
    qa            {"question", "answer", "context"?}       <cn> context⏎问：question⏎答： [answer <eot>]
    translation   {"text", "translation", "from", "to"}    <cn> text <en> [translation <eot>]
    code          {"instruction", "answer", "lang"?}       <python> Question: instruction⏎Answer:⏎ [answer <eot>]

Every record also has "domain" and "task", and may have "source" and "doc" as for text (`corpus.py`). 问： and 答： are
PanGu-α's prompts for such tasks; domains whose first control token is not <cn> use "Question: " and "Answer: " instead.
A translation has the same form as a document of the bilingual domain. The rest is ours.

A document is a sequence of alternating parts: prompt, answer, prompt, answer, and so on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mindpangu.data.formats import Parts, language_token, opening_ids, opening_token, text_of
from mindpangu.display import short_repr
from mindpangu.domains import CHINESE, ENGLISH, Domain
from mindpangu.tokenizer import Tokenizer

_CHINESE_CUES = ("问：", "答：")
_ENGLISH_CUES = ("Question: ", "Answer: ")
_TOKEN_OF_LANGUAGE = {"zh": CHINESE, "en": ENGLISH}


def instruction_parts(domain: Domain, record: Mapping[str, Any], with_answer: bool = True) -> Parts:
    """Returns the parts of a record's document: alternating prompts and answers.

    Args:
        domain: the record's domain.
        record: a record as described at the top of this module.
        with_answer: False if the record has no (last) answer; the last part is then only the answer's control token.

    Raises:
        ValueError: the record is unusable. The report of bad records quotes the message.
    """
    task = record.get("task")
    if not isinstance(task, str) or task not in _TASKS:
        raise ValueError(f'"task" is {short_repr(task)}; known: {", ".join(_TASKS)}')
    return _TASKS[task](domain, record, with_answer)


def prompt_parts(domain: Domain, record: Mapping[str, Any]) -> Parts:
    """Returns the parts of a record without an answer, e.g. {"task": "qa", "question": …}.

    In a dialogue, the last text has no reply. Raises ValueError like `instruction_parts`.
    """
    return instruction_parts(domain, record, with_answer=False)


def encode_prompt(parts: Parts, tokenizer: Tokenizer, limit: int) -> list[int]:
    """Returns the token ids before an answer, as in a sample, shortened to at most `limit` (`shorten`)."""
    ids, _ = _join(parts, iter(tokenizer.encode_batch([text for _, text in parts], 1)), tokenizer, with_answer=False)
    return shorten(ids, limit)


def encode_samples(
    documents: Sequence[Parts], tokenizer: Tokenizer, seq_length: int, threads: int = 1
) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8], bool]]:
    """Encodes each document as a sample: (S + 1 token ids, 1 where a token counts, whether it was shortened).

    A short document is padded. A long one first loses the beginning of its first prompt, down to half of the sample;
    if it is still too long, it is cut off at the end. So every sample contains at least part of an answer.

    Raises:
        TokenizerError: the tokenizer lacks a control token.
    """
    encoded = iter(tokenizer.encode_batch([text for parts in documents for _, text in parts], threads))
    length = seq_length + 1
    samples = []
    for parts in documents:
        ids, counted = _join(parts, encoded, tokenizer, with_answer=True)
        prompt_length = counted.index(1)
        excess = len(ids) - length
        kept = min(prompt_length, max(prompt_length - max(excess, 0), length // 2))
        ids = shorten(ids[:prompt_length], kept) + ids[prompt_length:]
        counted = [0] * kept + counted[prompt_length:]
        padded_ids = np.full(length, tokenizer.pad_id, np.int32)
        padded_ids[: len(ids)] = ids[:length]
        mask = np.zeros(length, np.uint8)
        mask[: len(ids)] = counted[:length]
        samples.append((padded_ids, mask, excess > 0))
    return samples


def first_answer(ids: npt.NDArray[np.int32], counted: npt.NDArray[np.uint8]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the token ids of the first prompt and of the first answer in a sample of `encode_samples`."""
    start = int(np.argmax(counted))
    end = start + int(np.argmin(np.append(counted[start:], 0)))
    return tuple(ids[:start].tolist()), tuple(ids[start:end].tolist())


def shorten(prompt: list[int], limit: int) -> list[int]:
    """Shortens a prompt to at most `limit` (≥ 1) tokens: the first, which is the control token, and the last ones."""
    return prompt if len(prompt) <= limit else [prompt[0], *prompt[len(prompt) - limit + 1 :]]


def _join(
    parts: Parts, encoded: Iterator[list[int]], tokenizer: Tokenizer, with_answer: bool
) -> tuple[list[int], list[int]]:
    """Returns (token ids, 1 where a token counts). Without `with_answer` the last, empty answer gets no <eot>."""
    ids: list[int] = []
    counted: list[int] = []
    for index, (token, _) in enumerate(parts):
        opening = opening_ids(token, tokenizer)
        text = next(encoded)
        is_answer = index % 2
        if is_answer and (with_answer or index < len(parts) - 1):
            text = [*text, tokenizer.eot_id]
        ids += [*opening, *text]
        counted += [0] * len(opening) + [is_answer] * len(text)
    return ids, counted


def _dialogue(domain: Domain, record: Mapping[str, Any], with_answer: bool) -> Parts:
    turns = record.get("turns")
    if not isinstance(turns, list) or not turns:
        raise ValueError('"turns" is not a list of texts' if turns else 'no "turns"')
    turns = [text_of({"turns": turn}, "turns") for turn in turns]
    if len(turns) % 2 == with_answer:
        raise ValueError(
            f'"turns" has {len(turns)} texts; '
            + ("every second one must be a reply" if with_answer else "the last one must not be a reply")
        )
    question_cue, answer_cue = _cues(domain)
    parts = []
    for start in range(0, len(turns), 2):
        token = "" if start else opening_token(domain)
        separator = "\n" if start else ""
        reply = "".join(turns[start + 1 : start + 2])  # empty for the last text of a prompt
        parts += [(token, f"{separator}{question_cue}{turns[start]}\n{answer_cue}"), ("", reply)]
    return tuple(parts)


def _qa(domain: Domain, record: Mapping[str, Any], with_answer: bool) -> Parts:
    question_cue, answer_cue = _cues(domain)
    context = f"{text_of(record, 'context')}\n" if record.get("context") else ""
    prompt = f"{context}{question_cue}{text_of(record, 'question')}\n{answer_cue}"
    return (opening_token(domain), prompt), ("", text_of(record, "answer") if with_answer else "")


def _translation(domain: Domain, record: Mapping[str, Any], with_answer: bool) -> Parts:
    source, target = (_token_of(domain, record, field) for field in ("from", "to"))
    return (source, text_of(record, "text")), (target, text_of(record, "translation") if with_answer else "")


def _code(domain: Domain, record: Mapping[str, Any], with_answer: bool) -> Parts:
    question_cue, answer_cue = _ENGLISH_CUES
    prompt = f"{question_cue}{text_of(record, 'instruction')}\n{answer_cue.rstrip()}\n"
    return (language_token(domain, record), prompt), ("", text_of(record, "answer") if with_answer else "")


_TASKS: dict[str, Callable[[Domain, Mapping[str, Any], bool], Parts]] = {
    "dialogue": _dialogue,
    "qa": _qa,
    "translation": _translation,
    "code": _code,
}


def _cues(domain: Domain) -> tuple[str, str]:
    """Returns the texts that announce a question and an answer. PanGu-α's domain, which has no token, is Chinese."""
    return _CHINESE_CUES if opening_token(domain) in (CHINESE, "") else _ENGLISH_CUES


def _token_of(domain: Domain, record: Mapping[str, Any], field: str) -> str:
    language = text_of(record, field)
    token = _TOKEN_OF_LANGUAGE.get(language, f"<{language}>")
    if token not in domain.control_tokens:
        raise ValueError(
            f'"{field}" is {short_repr(language)}, but domain {domain.name} has the control tokens '
            f"{', '.join(domain.control_tokens) or 'none'}"
        )
    return token
