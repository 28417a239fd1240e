"""Measures the speed of generation: with and without key-value cache, in batches, and with experts loaded on demand.

    python tools/bench_generate.py                                # the main job's model with windows of 512 tokens
    python tools/bench_generate.py --checkpoint output/cpu_smoke  # your own model; --new-tokens must fit its window

Without a checkpoint, the main job's recipe is prepared and trained for a single step in a temporary folder, which takes
a minute; speed does not depend on the weights. All variants take turns, and their medians are compared. Decoding is
greedy, and functions are compiled before the measurement.

    loop          recomputes the whole window for every token, with all experts in memory
    batch N       N texts with a cache, from held-out prompts of the domains in turn
    bounded       batch 8 with a memory limit that fits a third of a layer's experts, or the minimum if that is more
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindpangu.checkpoint import CheckpointReader
from mindpangu.cli.programs import run_program
from mindpangu.config import load_config
from mindpangu.data import TokenShards, prompt_ids
from mindpangu.data.prepare import prepare_routing, prepare_shards, prepare_tokenizer
from mindpangu.domains import domain_named
from mindpangu.errors import MindPanguError
from mindpangu.generation.generator import Generator, Request, heldout_prompt
from mindpangu.language_model import LanguageModel, load_model
from mindpangu.train.run import open_run, set_device, train

BATCHES = (1, 2, 4, 8)
CACHE_BOUND = 5.0
BATCH_BOUND = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="run folder with its data; default: create one")
    parser.add_argument("--config", type=Path, default=Path("recipes/cpu_smoke.yaml"), help="default: %(default)s")
    parser.add_argument("--seq-length", type=int, default=512, help="of the created model; default: %(default)s")
    parser.add_argument("--new-tokens", type=int, default=256, help="new tokens per text; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="measurements per variant; default: %(default)s")
    arguments = parser.parse_args()

    try:
        with tempfile.TemporaryDirectory() as folder:
            measure(arguments.checkpoint or make_run(arguments, Path(folder)), arguments.new_tokens, arguments.rounds)
    except MindPanguError as error:
        sys.exit(f"bench_generate: {error}")


def make_run(arguments: argparse.Namespace, folder: Path) -> Path:
    """Creates a run folder with a checkpoint after one step."""
    changes = {
        "model.seq_length": str(arguments.seq_length),
        "training.output_dir": str(folder),
        "training.steps": "1",
        "training.local_batch_size": "1",
        "lr_scheduler.warmup_steps": "0",
        "monitor.heldout_samples": "1",
    }

    config = load_config(arguments.config, changes)
    set_device(config)
    for prepare in (prepare_tokenizer, prepare_shards, prepare_routing):
        prepare(config, log=lambda text: None)
    run = open_run(config)
    train(run, log=lambda text: None)
    return run.folder.root


def measure(folder: Path, new_tokens: int, rounds: int) -> None:
    """Measures all variants, and prints a table and whether the bounds hold."""
    reader = CheckpointReader(folder)
    set_device(reader.config())
    generators = {count: Generator.load(reader, count) for count in BATCHES}
    parts = generators[1].parts
    shards = TokenShards.open(folder / "data")
    prompts = [Request(domain.name, heldout_prompt(parts, shards, domain), new_tokens) for domain in parts.domains]
    requests = {count: [prompts[i % len(prompts)] for i in range(count)] for count in BATCHES}

    model = load_model(reader)
    variants: dict[str, Callable[[], int]] = {"loop": partial(loop, model, prompts[0])}
    for count, generator in generators.items():
        variants[f"batch {count}"] = partial(count_generated, generator, requests[count])

    bounded = None
    if parts.config.model.rre_layers:
        expert = 4 * sum(int(np.prod(shape)) for shape in parts.expert_shapes.values())
        groups = [domain.num_experts for domain in parts.domains]
        entries = max(sum(groups) // 3, *groups, BATCHES[-1])
        memory = parts.config.model.rre_layers * entries * expert
        bounded = Generator.load(reader, BATCHES[-1], memory)
        variants["bounded"] = partial(count_generated, bounded, requests[BATCHES[-1]])

    for variant in variants.values():  # compiles functions and reads experts before the measurement
        variant()

    speeds: dict[str, list[float]] = {name: [] for name in variants}
    fetched = bounded.experts_fetched if bounded else 0
    for _ in tqdm(range(rounds), desc="rounds", disable=None):
        for name, variant in variants.items():
            start = time.perf_counter()
            speeds[name].append(variant() / (time.perf_counter() - start))

    medians = {name: statistics.median(values) for name, values in speeds.items()}
    print(f"tokens/s, median of {rounds} (lowest to highest); {new_tokens} new tokens per text")
    for name, values in speeds.items():
        print(f"  {name:<9} {medians[name]:8.1f}  ({min(values):.1f} to {max(values):.1f})")
    print_check("cache: batch 1 / loop", medians["batch 1"] / medians["loop"], CACHE_BOUND)
    print_check("batch 8 / batch 1", medians["batch 8"] / medians["batch 1"], BATCH_BOUND)
    if bounded:
        fetches = (bounded.experts_fetched - fetched) / rounds
        print(
            f"  bounded / batch 8: {medians['bounded'] / medians['batch 8']:.2f} with {entries} of {sum(groups)} "
            f"experts of each layer in {memory / 1e6:.1f} MB; {fetches:.0f} experts were read again per round"
        )


def print_check(name: str, value: float, bound: float) -> None:
    """Prints a ratio and whether it reaches its lower bound."""
    print(f"  {name}: {value:.2f} ({'holds' if value >= bound else 'MISSED'}: >= {bound:g})")


def count_generated(generator: Generator, requests: list[Request]) -> int:
    """Generates all texts and returns the number of new tokens."""
    return sum(completion.tokens for completion in generator.generate(requests))


def loop(model: LanguageModel, request: Request) -> int:
    """Decodes greedily without a cache, and returns the number of new tokens. A full window is halved."""
    domain_id, domain = domain_named(model.domains, request.domain)
    window = model.config.model.seq_length
    tokenizer = model.tokenizer_of(domain)
    prompt = request.prompt
    ids = prompt_ids(domain, prompt, tokenizer) if isinstance(prompt, str) else list(prompt)

    start = 0
    for _ in range(request.max_new_tokens):
        if len(ids) - start > window:
            start = len(ids) - window // 2
        tokens_BS = np.full((1, window), tokenizer.pad_id, np.int32)
        tokens_BS[0, : len(ids) - start] = ids[start:]
        logits_V = model.next_token_logits(tokens_BS, domain_id, last=len(ids) - start - 1)[0]
        ids.append(int(logits_V[: tokenizer.vocab_size].argmax()))
    return request.max_new_tokens


if __name__ == "__main__":
    run_program(main)
