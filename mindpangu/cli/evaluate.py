"""Held-out perplexity of every domain, beside a unigram baseline and under the wrong domain ids.

Skipped when this checkpoint was already evaluated on this data.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder

# Routing every text as every domain costs domains² passes; beyond this it has to be asked for.
_DOMAINS_TO_CROSS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", metavar="DIR", type=Path, help="a checkpoint or a run folder; default: the run's newest"
    )
    parser.add_argument(
        "--wrong-domains",
        action=argparse.BooleanOptionalAction,
        help=f"also route every text as every other domain (default: with up to {_DOMAINS_TO_CROSS} domains)",
    )


def run(options: argparse.Namespace, config: Config) -> None:
    from mindpangu.checkpoint import CheckpointReader, refuse_other_model
    from mindpangu.data import TokenShards
    from mindpangu.domains import build_domains
    from mindpangu.stage import ResultFile

    folder = RunFolder.from_config(config)
    reader = CheckpointReader(options.checkpoint or folder.root)
    refuse_other_model(reader, config)
    config = replace(reader.config(), monitor=config.monitor, context=config.context)
    wrong = options.wrong_domains
    if wrong is None:
        wrong = len(build_domains(config)) <= _DOMAINS_TO_CROSS
    shards = TokenShards.open(folder.data, verify=True)
    inputs = {
        "format_version": 2,  # 1 left out samples that filled no batch
        "checkpoint": reader.digest,
        "data": shards.digest,
        "heldout_samples": config.monitor.heldout_samples,
        "wrong_domains": wrong,
        "precision": config.context.precision,
    }
    result = ResultFile(folder.evaluation, inputs)
    if result.is_current():
        print(f"evaluate: up to date ({folder.evaluation})")
        return
    from tqdm import tqdm

    from mindpangu.language_model import load_model
    from mindpangu.train.heldout import evaluate_heldout, format_results, perplexity
    from mindpangu.train.report import write_report
    from mindpangu.train.run import set_device

    set_device(config)
    model = load_model(reader, config.context)
    model.require_data(shards)
    if reader.json("state.json")["digests"].get("data (token shards)") != shards.digest:
        print("evaluate: these token shards are not the ones it was trained on; it may have seen the held-out text")
    results = evaluate_heldout(
        model, shards, config, wrong, progress=lambda items: tqdm(items, desc="evaluate", unit="domain", disable=None)
    )
    print(format_results(results))
    without = {domain.name for domain in model.domains} - {each.domain for each in results}
    if without:
        print(f"evaluate: there is no held-out text of {', '.join(sorted(without))}: left out")
    result.write(
        {
            "step": reader.step,
            "domains": [
                asdict(each)
                | {
                    "perplexity": each.perplexity,
                    "unigram_perplexity": each.unigram_perplexity,
                    "ratio": each.ratio,
                    "perplexity_as": {name: perplexity(loss) for name, loss in each.loss_as.items()},
                }
                for each in results
            ],
        }
    )
    write_report(folder)
    print(f"evaluate: step {reader.step} → {folder.evaluation}")
