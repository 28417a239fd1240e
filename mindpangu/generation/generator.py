"""Generates texts from prompts: batches, stop conditions, the context window."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mindpangu.checkpoint import CheckpointReader
from mindpangu.config.schema import ContextConfig
from mindpangu.data import HELDOUT, TokenShards, encode_prompt, first_answer, prompt_ids, prompt_parts
from mindpangu.domains import Domain, domain_named
from mindpangu.errors import GenerationError
from mindpangu.experts import ExpertCache, entries_within
from mindpangu.generation.sampling import Sampler, SamplingSettings
from mindpangu.generation.steps import DecodingSteps, ExpertPools, lengths
from mindpangu.generation.text import StopStrings, TextStream, whole_characters, without_partial_character
from mindpangu.language_model import ExpertReader, ModelParts, read_dense
from mindpangu.model.decoder import Decoder
from mindpangu.model.precision import expert_dtype


@dataclass(frozen=True)
class Request:
    """A prompt to continue.

    Attributes:
        domain: name of the domain whose experts and control token are used.
        prompt: a text, or the tokens before the continuation, including the control token.
        max_new_tokens: maximum number of new tokens.
        sampling: how tokens are sampled.
        stop: strings that end the continuation, which is cut before the first one.
        stop_tokens: control tokens that end it, in addition to `<eot>`.

    Raises:
        GenerationError: a value is invalid.
    """

    domain: str
    prompt: str | tuple[int, ...]
    max_new_tokens: int = 48
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise GenerationError(f"max_new_tokens is {self.max_new_tokens}; allowed: >= 1")
        if "" in self.stop:
            raise GenerationError("a stop string is empty, so every text would end at once; remove it")


@dataclass(frozen=True)
class Piece:
    """A piece of a continuation: the text that one new token adds.

    Attributes:
        request: index of the request.
        text: text that can now be shown; may be empty.
        finished: reason why the text ends here: "eot", "token", "stop" or "length"; empty if it continues.
    """

    request: int
    text: str
    finished: str = ""


@dataclass(frozen=True)
class Completion:
    """A continuation.

    Attributes:
        text: the continuation, without its prompt and without the token or string that ended it.
        tokens: number of generated tokens, including the one that ended it.
        finished: reason why it ended (`Piece`).
    """

    text: str
    tokens: int
    finished: str


class Generator:
    """Continues prompts with the model of a checkpoint. Experts are read when a token first needs them.

    Attributes:
        parts: the model without its weights.

    Args:
        parts: see above.
        decoder: the decoder with its weights.
        cache: cache of the experts; None for a dense model.
        batch_size: maximum number of texts to extend together.
    """

    def __init__(self, parts: ModelParts, decoder: Decoder, cache: ExpertCache | None, batch_size: int = 8):
        self.parts = parts
        self._decoder = decoder
        self._batch_size = batch_size
        self._pools = ExpertPools(parts, cache)
        self._steps: dict[tuple[int, int], DecodingSteps] = {}

    @classmethod
    def load(
        cls,
        reader: CheckpointReader,
        batch_size: int = 8,
        expert_memory: int | None = None,
        context: ContextConfig | None = None,
    ) -> "Generator":
        """Loads a generator from a checkpoint.

        Args:
            reader: the checkpoint.
            batch_size: maximum number of texts to extend together.
            expert_memory: limit on the bytes for experts; None allows as many as the experts in use need.
            context: see `ModelParts.from_checkpoint`.

        Raises:
            GenerationError: batch_size is below 1.
            ExpertStoreError: there is too little memory for experts.
            CheckpointError: files are missing, altered or do not fit together.
        """
        if batch_size < 1:
            raise GenerationError(f"batch_size is {batch_size}; allowed: >= 1")
        parts = ModelParts.from_checkpoint(reader, context)
        decoder = Decoder(parts.config, parts.vocabularies)
        read_dense(reader, decoder.parameters, decoder.slices)
        cache = open_cache(parts, ExpertReader(reader, parts), batch_size, expert_memory)
        return cls(parts, decoder, cache, batch_size)

    @property
    def experts_fetched(self) -> int:
        """Number of times that an expert has been read from disk."""
        return self._pools.fetched

    def prompt_text(self, request: Request) -> str:
        """Returns a request's prompt as text to show: without control tokens, and without partial characters at its
        beginning and end."""
        _, domain = domain_named(self.parts.domains, request.domain)
        given = request.prompt
        return given if isinstance(given, str) else whole_characters(self.parts.tokenizer_of(domain).decode(given))

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Generates all texts, in the order of the requests. Raises the same errors as `stream`."""
        texts = [""] * len(requests)
        tokens = [0] * len(requests)
        finished = [""] * len(requests)
        for piece in self.stream(requests):
            texts[piece.request] += piece.text
            tokens[piece.request] += 1
            finished[piece.request] = piece.finished
        return [Completion(*each) for each in zip(texts, tokens, finished, strict=True)]

    def stream(self, requests: Sequence[Request]) -> Iterator[Piece]:
        """Yields a piece for every token as it is generated. Texts of a batch take turns; batches run one by one.

        Raises:
            ConfigError: the model does not have a domain.
            TokenizerError: a domain's tokenizer lacks a stop token.
            GenerationError: a prompt has no tokens.
            CheckpointError: an expert cannot be read.
        """
        texts = [_Text(index, request, self.parts) for index, request in enumerate(requests)]
        size = min(self._batch_size, len(texts))
        for first in range(0, len(texts), max(size, 1)):
            yield from self._run_batch(texts[first : first + size], size)

    def _run_batch(self, texts: list["_Text"], size: int) -> Iterator[Piece]:
        steps = self.steps_for(size, max(text.longest for text in texts))
        domains_B = np.full(size, texts[0].domain_id)
        domains_B[: len(texts)] = [text.domain_id for text in texts]
        for index, text in enumerate(texts):
            yield text.take(steps.prefill(index, text.domain_id, text.window))
        while any(not text.finished for text in texts):
            tokens_B = np.zeros(size, np.int32)
            positions_B = np.zeros(size, np.int32)
            active_B = np.zeros(size, bool)
            for index, text in enumerate(texts):
                if text.finished:
                    continue
                if text.restart():
                    yield text.take(steps.prefill(index, text.domain_id, text.window))
                else:
                    tokens_B[index] = text.ids[-1]
                    active_B[index] = True
                # idle rows are computed too; their results go where the text's next token will overwrite them
                positions_B[index] = min(text.position, steps.capacity - 1)
            if active_B.any():
                logits = steps.extend(tokens_B, positions_B, domains_B, active_B)
                for index in np.flatnonzero(active_B).tolist():
                    yield texts[index].take(logits[index])

    def steps_for(self, batch: int, longest: int) -> DecodingSteps:
        """Returns compiled functions for so many texts of at most so many tokens."""
        window = self.parts.config.model.seq_length
        capacity = next((each for each in lengths(window) if each >= longest), window)
        if (batch, capacity) not in self._steps:
            self._steps[batch, capacity] = DecodingSteps(self.parts, self._decoder, self._pools, batch, capacity)
        return self._steps[batch, capacity]


class _Text:
    """The growing text of one request.

    Positions are learned, so the window cannot slide. A text that outgrows model.seq_length continues with its last
    half window, which is read again.
    """

    def __init__(self, index: int, request: Request, parts: ModelParts):
        self._index = index
        self._request = request
        self.domain_id, domain = domain_named(parts.domains, request.domain)
        tokenizer = parts.tokenizer_of(domain)
        self._seq_length = parts.config.model.seq_length
        self._vocab_size = tokenizer.vocab_size
        self._ends = {tokenizer.eot_id: "eot"} | {tokenizer.control_id(name): "token" for name in request.stop_tokens}
        given = request.prompt
        self.ids = prompt_ids(domain, given, tokenizer) if isinstance(given, str) else list(given)
        if not self.ids:
            raise GenerationError(
                f"prompt {index + 1} is empty, and no control token opens a text of domain {domain.name}; give a text"
            )
        self._generated = 0
        self._start = 0
        self.finished = ""
        self.longest = len(self.ids) + request.max_new_tokens
        self._sampler = Sampler(request.sampling, self.ids)
        self._stream = TextStream(tokenizer, self.ids)
        self._stops = StopStrings(request.stop)
        self.restart()

    @property
    def window(self) -> list[int]:
        """Tokens in the model's context window."""
        return self.ids[self._start :]

    @property
    def position(self) -> int:
        """Position of the last token in the window."""
        return len(self.ids) - self._start - 1

    def restart(self) -> bool:
        """Moves the start of the window if the text no longer fits it; returns whether it did."""
        if len(self.ids) - self._start <= self._seq_length:
            return False
        self._start = len(self.ids) - self._seq_length // 2
        return True

    def take(self, logits_V: np.ndarray) -> Piece:
        """Samples the next token. Ignores rows of the vocabulary beyond the tokenizer's tokens."""
        token = self._sampler.pick(logits_V[: self._vocab_size])
        self._generated += 1
        text = ""
        self.finished = self._ends.get(token, "")
        if not self.finished:
            self.ids.append(token)
            text = self._stops.push(self._stream.push(token))
            if not self._stops.found and self._generated == self._request.max_new_tokens:
                self.finished = "length"
        if self.finished:
            text += self._stops.push(self._stream.end())
        if self._stops.found:
            self.finished = "stop"
        elif self.finished:
            text += self._stops.end()
        return Piece(self._index, text, self.finished)


def record_prompt(parts: ModelParts, domain_name: str, record: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the prompt of an instruction record (`data.instruction`): the tokens before its answer, as in training.

    The prompt has at most model.seq_length tokens.

    Raises:
        GenerationError: the record cannot be used.
        ConfigError: the model does not have the domain.
    """
    _, domain = domain_named(parts.domains, domain_name)
    try:
        given = prompt_parts(domain, record)
    except ValueError as error:
        raise GenerationError(f"the record {json.dumps(record, ensure_ascii=False)}: {error}") from None
    return tuple(encode_prompt(given, parts.tokenizer_of(domain), parts.config.model.seq_length))


def open_cache(
    parts: ModelParts,
    read: Callable[[int, int, int], Mapping[str, np.ndarray]],
    batch_size: int,
    expert_memory: int | None = None,
) -> ExpertCache | None:
    """Creates a cache with one entry per expert, or as many as fit in a memory limit; None for a dense model.

    Args:
        parts: the model without its weights.
        read: reads an expert; see `ExpertCache`.
        batch_size: number of texts that may need different experts at once.
        expert_memory: limit on the bytes for experts; None sets no limit.

    Raises:
        ExpertStoreError: expert_memory is too small.
    """
    layers = parts.config.model.rre_layers
    dtype = expert_dtype(parts.config)
    if layers == 0:
        return None
    groups = [domain.num_experts for domain in parts.domains]
    num_entries = sum(groups)
    if expert_memory is not None:
        least = min(num_entries, max(*groups, batch_size))
        itemsize = np.dtype(dtype).itemsize
        num_entries = min(num_entries, entries_within(expert_memory, layers, parts.expert_shapes, least, itemsize))
    return ExpertCache(layers, parts.expert_shapes, num_entries, read, dtype)


def heldout_prompt(parts: ModelParts, shards: TokenShards, domain: Domain, num_tokens: int = 16) -> tuple[int, ...]:
    """Returns the first tokens of the domain's first held-out document, or its first record up to the first answer.

    The prompt has the document's own tokens, including control tokens. It ends before `<eot>`, and never inside a
    character.

    Args:
        num_tokens: maximum number of tokens after the first one, which is a control token in most domains.
    """
    if shards.has_records:
        ids_T, counted_T = shards.samples(domain.name, HELDOUT, parts.config.model.seq_length)[0]
        assert counted_T is not None, "text has no answers"
        given, _ = first_answer(ids_T, counted_T)
        return given
    tokens = shards.tokens(domain.name, HELDOUT)
    start = 0
    while start < len(tokens) - 1 and tokens[start] == shards.eot_id:  # with PanGu-α's tokenizer, a text may be empty
        start += 1
    ids = tokens[start : start + num_tokens + 1].tolist()
    if shards.eot_id in ids:
        ids = ids[: ids.index(shards.eot_id)]
    return tuple(without_partial_character(ids, parts.tokenizer_of(domain)))
