"""Compute the held-out perplexity of every domain, or answer the questions of published tasks.

mindpangu evaluate --checkpoint output/cpu_smoke
mindpangu evaluate --checkpoint output/cpu_smoke --tasks c3,ocnli --data ~/clue --limit 500
mindpangu evaluate --list --data ~/clue

The perplexity is printed next to a unigram baseline and to that of routing by wrong domains. What has already been
evaluated with the same options is not evaluated again.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from mindpangu.cli import evaluate_tasks
from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder

# routing every text as every domain takes domains² passes, so with more domains than this the user must ask for it
_DOMAINS_TO_CROSS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        type=Path,
        help="Evaluate this checkpoint, or the newest one of this run folder (default: the newest one of the run).",
    )
    parser.add_argument(
        "--wrong-domains",
        action=argparse.BooleanOptionalAction,
        help=f"Also route every text as every other domain (default: only with up to {_DOMAINS_TO_CROSS} domains).",
    )
    evaluate_tasks.add_arguments(parser)


def run(options: argparse.Namespace, config: Config) -> None:
    if options.list:
        evaluate_tasks.list_tasks(options)
    elif options.tasks is not None:
        evaluate_tasks.run_tasks(options, config)
    else:
        evaluate_tasks.refuse_options_of_tasks(options)
        _evaluate_heldout_text(options, config)


def _evaluate_heldout_text(options: argparse.Namespace, config: Config) -> None:
    from mindpangu.checkpoint import CheckpointReader, SavedState, refuse_other_model
    from mindpangu.data import TokenShards
    from mindpangu.domains import build_domains
    from mindpangu.evaluation.record import evaluation_inputs, evaluation_record, format_results
    from mindpangu.stage import ResultFile
    from mindpangu.train.report import SavedEvaluation, write_report

    folder = RunFolder.from_config(config)
    reader = CheckpointReader(options.checkpoint or folder.root)
    refuse_other_model(reader, config)
    experts = config.experts
    config = replace(reader.config(), monitor=config.monitor, context=config.context)
    wrong_domains = options.wrong_domains
    if wrong_domains is None:
        wrong_domains = len(build_domains(config)) <= _DOMAINS_TO_CROSS
    shards = TokenShards.open(folder.data, verify=True)
    result = ResultFile(folder.evaluation, evaluation_inputs(reader.digest, shards.digest, config, wrong_domains))
    if result.is_current(SavedEvaluation):
        print(f"evaluate: up to date ({folder.evaluation})")
        return
    from functools import partial

    from tqdm import tqdm

    from mindpangu.evaluation.heldout import evaluate_heldout
    from mindpangu.language_model import load_model
    from mindpangu.train.run import set_device

    set_device(config)
    model = load_model(reader, config.context, experts)
    model.require_data(shards)
    if SavedState.read(reader).digests.get("data (token shards)") != shards.digest:
        print("evaluate: the model was not trained on these token shards; it may have seen the held-out text")
    progress = partial(tqdm, desc="evaluate", unit="domain", disable=None)
    results = evaluate_heldout(model, shards, config, wrong_domains, progress)
    print(format_results(results))
    without = {domain.name for domain in model.domains} - {each.domain for each in results}
    if without:
        print(f"evaluate: there is no held-out text of {', '.join(sorted(without))}: left out")
    result.write(evaluation_record(reader.step, results))
    write_report(folder)
    print(f"evaluate: step {reader.step} → {folder.evaluation}")
