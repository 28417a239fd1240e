"""The stages before training: tokenizer, token shards, and routing table. Each is skipped if its inputs are unchanged.

MindSpore is not imported here, so up-to-date stages take no time.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder
from mindpangu.data.corpus import CorpusReader
from mindpangu.data.shard_writer import write_shards
from mindpangu.data.shards import TokenShards
from mindpangu.data.split import HELDOUT, TRAIN, split_corpus, training_texts
from mindpangu.domains import MAIN_VOCABULARY, Domain, build_domains, control_tokens_of
from mindpangu.errors import StageError, TokenizerError
from mindpangu.files import encode_json, read_chunks, write_durably
from mindpangu.routing import LoadStatistics, RoutingTable, compute_statistics, plot_load
from mindpangu.stage import Stage, hash_files
from mindpangu.tokenizer import Tokenizer, train_tokenizer

Log = Callable[[str], None]

BAD_RECORDS = "bad_records.txt"


def prepare_tokenizer(config: Config, log: Log = print) -> None:
    """Trains the run's tokenizer on the training split, or copies the one that data.tokenizer names."""
    folder = RunFolder.from_config(config).tokenizer
    domains = build_domains(config)
    names = [vocabulary.name for vocabulary in config.domains.vocabularies] or [MAIN_VOCABULARY]
    # "slots": the file format's name for vocabularies
    inputs: dict[str, Any] = {"slots": names, "control_tokens": control_tokens_of(domains)}
    if config.data.tokenizer:
        given = Tokenizer.load(Path(config.data.tokenizer), follow_link=True, given_by="data.tokenizer")
        stage = Stage(folder, inputs | {"file": given.digest})
    else:
        reader = CorpusReader(config, domains)
        stage = Stage(folder, inputs | _corpus_inputs(config, reader) | {"vocab_size": config.model.vocab_size})
    with stage.locked():
        if stage.is_current():
            log(f"tokenizer: up to date ({folder})")
            return
        _refuse_to_replace(config, stage)
        tokenizer = _build_tokenizer(config, stage, names, log)
    log(f"tokenizer: {tokenizer.vocab_size} pieces → {folder}")


def _build_tokenizer(config: Config, stage: Stage, names: Sequence[str], log: Log) -> Tokenizer:
    with stage.building() as scratch:
        path = scratch / f"{names[0]}.model"
        if config.data.tokenizer:
            write_durably(path, read_chunks(Path(config.data.tokenizer)))
            tokenizer = Tokenizer.load(path)
            if tokenizer.vocab_size > config.model.vocab_size and not config.domains.vocabularies:
                raise TokenizerError(
                    f"data.tokenizer {config.data.tokenizer} has {tokenizer.vocab_size} pieces, but "
                    f"model.vocab_size is {config.model.vocab_size}; set it to {tokenizer.vocab_size} or more"
                )
        else:
            domains = build_domains(config)
            reader = CorpusReader(config, domains)
            split = split_corpus(reader)
            log(f"tokenizer: training {config.model.vocab_size} pieces on {reader.total_bytes / 1e6:.1f} MB of text …")
            texts = training_texts(reader, split)
            tokenizer = train_tokenizer(texts, config.model.vocab_size, control_tokens_of(domains), path, log)
            if reader.report.is_partial:
                log(f"tokenizer: {reader.report.summary()}")
        for vocabulary in names[1:]:
            write_durably(scratch / f"{vocabulary}.model", read_chunks(path))
    return tokenizer


def prepare_shards(config: Config, log: Log = print) -> None:
    """Writes the token shards of both splits."""
    run = RunFolder.from_config(config)
    reader = CorpusReader(config, build_domains(config))
    tokenizer = Tokenizer.load(_tokenizer_path(run))
    stage = Stage(run.data, _corpus_inputs(config, reader) | {"tokenizer": tokenizer.digest})
    with stage.locked():
        if stage.is_current():
            log(f"data: up to date ({run.data})")
            return
        _refuse_to_replace(config, stage)
        with stage.building() as scratch:
            shards = write_shards(scratch, reader, split_corpus(reader), tokenizer)
            if reader.report.bad_records:
                write_durably(scratch / BAD_RECORDS, ("\n".join(reader.report.bad_records) + "\n").encode())
    log(reader.report.summary() + (f"\n  full list: {run.data / BAD_RECORDS}" if reader.report.num_bad else ""))
    log(_table_of_records(shards) if shards.has_records else _table_of_text(shards))
    log(f"data: token shards → {run.data}")


def _table_of_text(shards: TokenShards) -> str:
    rows = [f"{'domain':>12} {'train tokens':>14} {'held-out tokens':>16} {'bytes/token':>12}"]
    for name in shards.domain_names:
        train, heldout = (shards.num_tokens(name, split) for split in (TRAIN, HELDOUT))
        density = shards.text_bytes(name, TRAIN) / max(train, 1)
        rows.append(f"{name:>12} {train:>14,} {heldout:>16,} {density:>12.2f}")
    return "\n".join(rows)


def _table_of_records(shards: TokenShards) -> str:
    rows = [f"{'domain':>12} {'train records':>14} {'held-out records':>17} {'answer tokens':>14} {'shortened':>10}"]
    for name in shards.domain_names:
        train, heldout = (shards.num_documents(name, split) for split in (TRAIN, HELDOUT))
        answers = [shards.num_answers(name, split) for split in (TRAIN, HELDOUT)]
        counted, shortened = map(sum, zip(*answers, strict=True))
        rows.append(f"{name:>12} {train:>14,} {heldout:>17,} {counted:>14,} {shortened:>10,}")
    return "\n".join(rows)


def prepare_routing(config: Config, log: Log = print) -> None:
    """Draws or copies the routing table, and prints the expected load of the experts."""
    run = RunFolder.from_config(config)
    if config.model.rre_layers == 0:
        log("routing: a dense model has no routing table")
        return
    shards = TokenShards.open(run.data)
    domains = build_domains(config)
    given = None
    if config.routing.table:
        given = RoutingTable.load(Path(config.routing.table), [domain.name for domain in domains])
        stage = Stage(run.routing, {"table": given.digest, "data": shards.digest})
    else:
        stage = Stage(run.routing, _routing_inputs(config, shards, domains))
    with stage.locked():
        if stage.is_current():
            if not run.load_plot.exists():
                _plot_load(config, RoutingTable.load(run.routing, shards.domain_names))
            log(f"routing: up to date ({run.routing})")
            return
        _refuse_to_replace(config, stage)
        with stage.building() as scratch:
            table = given or _draw_table(config, shards, domains)
            table.save(scratch)
            statistics = _statistics(config, table)
            write_durably(scratch / "statistics.json", encode_json(statistics.to_dict()))
    show_routing(config, log)
    log(f"routing: {table.assignment} table → {run.routing}")


def show_routing(config: Config, log: Log = print) -> None:
    """Prints the expected load of the experts, and plots it next to that of a random table."""
    run = RunFolder.from_config(config)
    table = RoutingTable.load(run.routing, [domain.name for domain in build_domains(config)])
    log(_plot_load(config, table).format_table(Tokenizer.load(_tokenizer_path(run)).piece))
    log(f"routing: plot of the experts' load → {run.load_plot}")


def _plot_load(config: Config, table: RoutingTable) -> LoadStatistics:
    """Plots the load of a table next to that of a random table. Returns the statistics of the table."""
    statistics = _statistics(config, table)
    compared = [statistics]
    if table.assignment != "random":
        domains = build_domains(config)
        counts = {domain.name: np.zeros(table.vocab_size(domain.name), np.int64) for domain in domains}
        settings = replace(config.routing, assignment="random")
        compared.insert(0, _statistics(config, RoutingTable.build(domains, counts, table.num_layers, settings)))
    plot_load(compared, RunFolder.from_config(config).load_plot)
    return statistics


def _statistics(config: Config, table: RoutingTable) -> LoadStatistics:
    shards = TokenShards.open(RunFolder.from_config(config).data)
    names = [name for name in shards.domain_names if shards.num_tokens(name, TRAIN)]
    train, heldout = ({name: shards.text_tokens(name, split) for name in names} for split in (TRAIN, HELDOUT))
    return compute_statistics(table, train, heldout, _tokens_per_slot(config))


def _tokens_per_slot(config: Config) -> int:
    """Returns the mean number of tokens per domain slot in a micro-batch."""
    return config.training.local_batch_size * config.model.seq_length // config.data.domains_per_step


def _routing_inputs(config: Config, shards: TokenShards, domains: Sequence[Domain]) -> dict[str, Any]:
    return {
        "data": shards.digest,
        "experts": {domain.name: domain.num_experts for domain in domains},
        "layers": config.model.rre_layers,
        "vocab_size": config.model.vocab_size,
        "assignment": [config.routing.assignment, config.routing.seed, config.routing.jitter],
        "tokens_of_a_slot": _tokens_per_slot(config),
    }


def _draw_table(config: Config, shards: TokenShards, domains: Sequence[Domain]) -> RoutingTable:
    counts = {domain.name: shards.token_counts(domain.name, TRAIN, _vocab_size(config, domain)) for domain in domains}
    return RoutingTable.build(domains, counts, config.model.rre_layers, config.routing)


def _corpus_inputs(config: Config, reader: CorpusReader) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    if config.data.format != "text":
        inputs = {"format": config.data.format, "seq_length": config.model.seq_length}
    return inputs | {
        "corpus": hash_files(reader.files),
        "domains": [[domain.name, domain.kind, list(domain.control_tokens)] for domain in reader.domains],
        "heldout_fraction": config.data.heldout_fraction,
        "seed": config.data.seed,
    }


def _vocab_size(config: Config, domain: Domain) -> int:
    sizes = {vocabulary.name: vocabulary.vocab_size for vocabulary in config.domains.vocabularies}
    return sizes.get(domain.vocabulary, config.model.vocab_size)


def _tokenizer_path(run: RunFolder) -> Path:
    """Returns the path of the run's tokenizer. All vocabularies have the same one, so any copy will do."""
    found = sorted(run.tokenizer.glob("*.model"))
    if not found:
        raise TokenizerError(f"there is no tokenizer in {run.tokenizer}; run `mindpangu tokenizer train` first")
    return found[0]


def _refuse_to_replace(config: Config, stage: Stage) -> None:
    """Raises StageError if a checkpoint depends on the stage's current output."""
    run = RunFolder.from_config(config)
    if stage.has_other_inputs() and any(run.checkpoints.glob("iteration_*")):
        raise StageError(
            f"{stage.folder} belongs to the training in {run.root}, but the corpus or the settings it was made from "
            f"have changed. Choose another --training.run_name, or remove {run.checkpoints}"
        )
