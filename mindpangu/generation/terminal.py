"""Prints generated texts and the speed on the terminal."""

import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from mindpangu.generation.generator import Generator, Request


def show(generator: Generator, requests: Sequence[Request], titles: bool = False) -> list[str]:
    """Prints prompts and continuations on stdout and the speed on stderr; returns the continuations.

    A single text is printed as it grows. Of several, each is printed when it and all before it are complete, above a
    progress bar.

    Args:
        titles: print a line with the domain above each text, and an arrow between prompt and continuation.
    """

    def opening(request: Request) -> str:
        prompt = generator.prompt_text(request)
        return f"── {request.domain} ──\n{prompt}⟶" if titles else prompt

    texts = [""] * len(requests)
    done = [False] * len(requests)
    shown = 0
    tokens = 0
    is_single = len(requests) == 1
    begin = time.perf_counter()
    most = sum(request.max_new_tokens for request in requests)
    with tqdm(total=most, unit="token", desc="generate", disable=True if is_single else None, leave=False) as bar:
        if is_single:
            print(opening(requests[0]), end="", flush=True)
        try:
            for piece in generator.stream(requests):
                texts[piece.request] += piece.text
                done[piece.request] = bool(piece.finished)
                tokens += 1
                bar.update()
                if is_single:
                    print(piece.text, end="", flush=True)
                while not is_single and shown < len(requests) and done[shown]:
                    with tqdm.external_write_mode():
                        print(opening(requests[shown]) + texts[shown], flush=True)
                    shown += 1
        finally:
            if is_single:
                print(flush=True)  # an error message starts on a new line
    seconds = time.perf_counter() - begin
    noun = "1 text" if is_single else f"{len(requests)} texts"
    print(
        f"generate: {tokens} tokens of {noun} in {seconds:.1f} s, {tokens / seconds:.1f} tokens/s with compilation; "
        f"{generator.experts_fetched} experts fetched",
        file=sys.stderr,
    )
    return texts
