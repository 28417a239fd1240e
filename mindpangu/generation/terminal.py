"""Texts to the terminal: one as it grows, several in their order, and what it took."""

import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from mindpangu.generation.generator import Generator, Request


def show(generator: Generator, requests: Sequence[Request], titles: bool = False) -> list[str]:
    """Prints prompts with their continuations on stdout, a line about the speed on stderr; returns the continuations.

    A single text is written as it comes; of several, each when all before it are complete, with a bar beneath.

    Args:
        titles: a line with the domain over each text, and an arrow between prompt and continuation.
    """

    def opening(request: Request) -> str:
        prompt = generator.prompt_text(request)
        return f"── {request.domain} ──\n{prompt}⟶" if titles else prompt

    texts, done, shown, tokens = [""] * len(requests), [False] * len(requests), 0, 0
    alone = len(requests) == 1
    begin = time.perf_counter()
    most = sum(request.max_new_tokens for request in requests)
    with tqdm(total=most, unit="token", desc="generate", disable=True if alone else None, leave=False) as bar:
        if alone:
            print(opening(requests[0]), end="", flush=True)
        try:
            for piece in generator.stream(requests):
                texts[piece.request] += piece.text
                done[piece.request] = bool(piece.finished)
                tokens += 1
                bar.update()
                if alone:
                    print(piece.text, end="", flush=True)
                while not alone and shown < len(requests) and done[shown]:
                    with tqdm.external_write_mode():
                        print(opening(requests[shown]) + texts[shown], flush=True)
                    shown += 1
        finally:
            if alone:
                print(flush=True)  # an error gets a line of its own
    seconds = time.perf_counter() - begin
    what = "1 text" if alone else f"{len(requests)} texts"
    print(
        f"generate: {tokens} tokens of {what} in {seconds:.1f} s, {tokens / seconds:.1f} tokens/s with compilation; "
        f"{generator.experts_fetched} experts fetched",
        file=sys.stderr,
    )
    return texts
