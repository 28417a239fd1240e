"""Measures generation: the key-value cache against the loop without one, batches, and experts on demand.

    python tools/bench_generate.py                                # the main job's model with windows of 512 tokens
    python tools/bench_generate.py --checkpoint output/cpu_smoke  # a model of one's own; --new-tokens must fit

Without a checkpoint, the recipe of the main job is prepared and trained for a single step in a temporary folder (a
minute): speed does not depend on the weights. All variants take turns, and medians are compared. Every text is greedy
and compiled functions are warm.

    loop          the whole window anew for every token, with all experts in memory
    batch N       N texts with a cache, in turn of the domains, from held-out prompts
    bounded       batch 8, its experts within a memory that holds one in three of a layer's, or the fewest that work
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindpangu.checkpoint import CheckpointReader
from mindpangu.config import load_config
from mindpangu.data import TokenShards, prompt_ids
from mindpangu.data.prepare import prepare_routing, prepare_shards, prepare_tokenizer
from mindpangu.domains import domain_named
from mindpangu.errors import MindPanguError
from mindpangu.generation.generator import Generator, Request, heldout_prompt
from mindpangu.language_model import LanguageModel, load_model
from mindpangu.train.run import open_run, set_device, train

BATCHES = (1, 2, 4, 8)
CACHE_BOUND, BATCH_BOUND = 5.0, 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="a run folder with its data; default: make one")
    parser.add_argument("--config", type=Path, default=Path("recipes/cpu_smoke.yaml"), help="default: %(default)s")
    parser.add_argument("--seq-length", type=int, default=512, help="of the model that is made; default: %(default)s")
    parser.add_argument("--new-tokens", type=int, default=256, help="of each text; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every variant; default: %(default)s")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            measure(arguments.checkpoint or make_run(arguments, Path(folder)), arguments.new_tokens, arguments.rounds)
    except MindPanguError as error:
        sys.exit(f"bench_generate: {error}")


def make_run(arguments: argparse.Namespace, folder: Path) -> Path:
    """A run folder with a checkpoint after one step."""
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
    """Prints the table and whether the bounds hold."""
    reader = CheckpointReader(folder)
    set_device(reader.config())
    generators = {count: Generator.load(reader, count) for count in BATCHES}
    parts = generators[1].parts
    shards = TokenShards.open(folder / "data")
    prompts = [
        Request(domain.name, heldout_prompt(parts, shards, domain), new_tokens) for domain in parts.domains
    ]  # of every domain, in turn
    requests = {count: [prompts[i % len(prompts)] for i in range(count)] for count in BATCHES}
    model = load_model(reader)
    variants: dict[str, Callable[[], int]] = {"loop": lambda: loop(model, prompts[0])}
    for count, generator in generators.items():
        variants[f"batch {count}"] = lambda generator=generator, count=count: tokens_of(generator, requests[count])
    bounded = None
    if parts.config.model.rre_layers:
        expert = 4 * sum(int(np.prod(shape)) for shape in parts.expert_shapes.values())
        groups = [domain.num_experts for domain in parts.domains]
        entries = max(sum(groups) // 3, *groups, BATCHES[-1])
        memory = parts.config.model.rre_layers * entries * expert
        bounded = Generator.load(reader, BATCHES[-1], memory)
        variants["bounded"] = lambda: tokens_of(bounded, requests[BATCHES[-1]])
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    for variant in variants.values():  # compiles, and reads experts
        variant()
    fetched = bounded.experts_fetched if bounded else 0
    for _ in tqdm(range(rounds), desc="rounds", disable=None):
        for name, variant in variants.items():
            begin = time.perf_counter()
            speeds[name].append(variant() / (time.perf_counter() - begin))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    print(f"tokens/s, median of {rounds} (lowest to highest); {new_tokens} new tokens a text")
    for name, values in speeds.items():
        print(f"  {name:<9} {medians[name]:8.1f}  ({min(values):.1f} to {max(values):.1f})")
    log("cache: batch 1 / loop", medians["batch 1"] / medians["loop"], CACHE_BOUND)
    log("batch 8 / batch 1", medians["batch 8"] / medians["batch 1"], BATCH_BOUND)
    if bounded:
        fetches = (bounded.experts_fetched - fetched) / rounds
        print(
            f"  bounded / batch 8: {medians['bounded'] / medians['batch 8']:.2f} with {entries} of {sum(groups)} "
            f"experts of each layer in {memory / 1e6:.1f} MB; {fetches:.0f} were read again in a round"
        )


def log(what: str, found: float, bound: float) -> None:
    print(f"  {what}: {found:.2f} ({'holds' if found >= bound else 'MISSED'}: >= {bound:g})")


def tokens_of(generator: Generator, requests: list[Request]) -> int:
    return sum(completion.tokens for completion in generator.generate(requests))


def loop(model: LanguageModel, request: Request) -> int:
    """Greedy, without a cache; as many tokens as are asked for, from the last half of a window where it is full."""
    domain_id, domain = domain_named(model.domains, request.domain)
    window, tokenizer = model.config.model.seq_length, model.tokenizer_of(domain)
    ids, start = prompt_ids(domain, request.prompt, tokenizer), 0
    for _ in range(request.max_new_tokens):
        if len(ids) - start > window:
            start = len(ids) - window // 2
        tokens_BS = np.full((1, window), tokenizer.pad_id, np.int32)
        tokens_BS[0, : len(ids) - start] = ids[start:]
        logits_V = model.next_token_logits(tokens_BS, domain_id, last=len(ids) - start - 1)[0]
        ids.append(int(logits_V[: tokenizer.vocab_size].argmax()))
    return request.max_new_tokens


if __name__ == "__main__":
    main()
