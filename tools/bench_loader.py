"""Measures the data loader in tokens per second from warm shards, with and without route plans.

    python tools/bench_loader.py                          # synthetic shards in a temporary folder
    python tools/bench_loader.py --shards output/run/data # real shards (the folder with index.json)

The loader also computes positions and loss masks.
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindpangu.cli.programs import run_program
from mindpangu.config import Config, DataConfig, ModelConfig, RoutingConfig, TrainingConfig, resolve
from mindpangu.data import Loader, TokenShards
from mindpangu.data.shards import FORMAT_VERSION, INDEX
from mindpangu.data.split import SPLITS
from mindpangu.data.step_planner import StepPlanner
from mindpangu.domains import Domain, build_domains
from mindpangu.files import encode_json, write_durably
from mindpangu.parallel.mesh import Coordinates, Mesh
from mindpangu.routing import RoutingTable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, help="folder of real shards (default: synthetic ones)")
    parser.add_argument(
        "--tokens", type=int, default=4_000_000, help="synthetic tokens per domain (default: %(default)s)"
    )
    parser.add_argument("--local-batch-size", type=int, default=8, help="samples per batch (default: %(default)s)")
    parser.add_argument("--seq-length", type=int, default=1024, help="tokens per sample (default: %(default)s)")
    parser.add_argument("--domains-per-step", type=int, default=1, help="domain slots (default: %(default)s)")
    parser.add_argument("--rre-layers", type=int, default=8, help="layers of the route plan (default: %(default)s)")
    parser.add_argument("--eod-reset", action="store_true", help="restart positions and mask after each document")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of each of 5 runs (default: %(default)s)")
    arguments = parser.parse_args()

    config = resolve(
        Config(
            model=ModelConfig(seq_length=arguments.seq_length),
            data=DataConfig(domains_per_step=arguments.domains_per_step, eod_reset=arguments.eod_reset),
            training=TrainingConfig(local_batch_size=arguments.local_batch_size),
        )
    )

    with tempfile.TemporaryDirectory() as scratch:
        domains: Sequence[Domain] = build_domains(config)
        if arguments.shards is None:
            write_synthetic_shards(Path(scratch), domains, arguments.tokens)
        # verify reads every file, which warms the page cache
        shards = TokenShards.open(arguments.shards or Path(scratch), verify=True)
        if arguments.shards is not None:
            domains = [Domain(name, "monolingual", (), 16) for name in shards.domain_names]

        table = RoutingTable.build(
            domains,
            {domain.name: np.ones(shards.vocab_size, np.int64) for domain in domains},
            arguments.rre_layers,
            RoutingConfig(assignment="random"),
        )
        planner = StepPlanner.from_config(config, domains, table, Mesh(), Coordinates(0, 0, 0, 0))

        report = {}
        for name, planned_by in (("loader", None), ("loader and route plan", planner)):
            loader = Loader(shards, domains, config)
            report[name] = sorted(measure(loader, planned_by, arguments.seconds) for _ in range(5))

    shape = {key: value for key, value in vars(arguments).items() if key not in ("shards", "tokens", "seconds")}
    print(shape)
    for name, rates in report.items():
        print(f"{name:>22}: {rates[2] / 1e6:6.1f} M tokens/s (5 runs: {rates[0] / 1e6:.1f} … {rates[-1] / 1e6:.1f})")


def measure(loader: Loader, planner: StepPlanner | None, seconds: float) -> float:
    """Returns tokens per second over about `seconds`, on one core; with a planner, batches are planned too."""
    tokens = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        for batch in loader.next_step().micro_batches:
            tokens += batch.tokens_BS.size
            if planner is not None:
                planner.plan(batch)
    return tokens / elapsed


def write_synthetic_shards(folder: Path, domains: tuple[Domain, ...], tokens: int) -> None:
    """Writes shards of random ids with an end of text about every 500 tokens."""
    rng = np.random.default_rng(0)
    files: dict[str, dict[str, dict[str, Any]]] = {}
    for domain in domains:
        files[domain.name] = {}
        for split in SPLITS:
            ids = rng.integers(3, 8000, tokens).astype("<u2")
            ids[rng.random(tokens) < 1 / 500] = 2
            write_durably(folder / f"{domain.name}.{split}.bin", ids.tobytes())
            files[domain.name][split] = {
                "tokens": tokens,
                "documents": int((ids == 2).sum()),
                "text_bytes": 0,
                "blake2b": hashlib.blake2b(ids.tobytes(), digest_size=16).hexdigest(),
            }

    index = {
        "format_version": FORMAT_VERSION,
        "dtype": "uint16",
        "vocab_size": 8000,
        "pad_id": 1,
        "eot_id": 2,
        "tokenizer_digest": "",
        "domain_names": [domain.name for domain in domains],
        "files": files,
    }
    write_durably(folder / INDEX, encode_json(index))


if __name__ == "__main__":
    run_program(main)
