"""List, add, copy, replace, remove and resize the domains' groups of experts.

list      the domains of a checkpoint: their experts, how often these were updated, their tables
add       a new domain, from a domain of the model, from a dense model's feed-forward networks, or fresh
copy      a domain of the model becomes a copy of another one
replace   a domain becomes that of another run
remove    a domain goes
resize    a domain gets more experts (its function stays) or fewer (they are merged)

All but `list` write a new checkpoint into --out, in which everything else is as it was, bit for bit. For example

  mindpangu experts add poetry --from zh --checkpoint output/cpu_smoke --out output/with_poetry
"""

import argparse
from pathlib import Path

from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder
from mindpangu.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _action(actions, "list", "the domains of a checkpoint, their experts and tables", None)

    add = _action(actions, "add", "a new domain", "its name")
    source = add.add_mutually_exclusive_group(required=True)
    source.add_argument("--from", dest="parent", metavar="DOMAIN", help="a copy of this domain of the model")
    source.add_argument("--from-dense", metavar="DIR", type=Path, help="copies of a dense model's networks")
    source.add_argument("--fresh", action="store_true", help="random experts")
    add.add_argument("--experts", metavar="N", type=int, help="per RRE layer; default: as the parent, or usual here")
    add.add_argument("--noise", type=float, default=0.0, help="with --from-dense: relative; default: %(default)s")
    add.add_argument(
        "--kind",
        choices=("monolingual", "bilingual", "code"),
        help="what its records hold; default: as PanGu-Σ's domain of this name, or the parent",
    )
    add.add_argument(
        "--control-token",
        metavar="TOKEN",
        action="append",
        default=[],
        help="opens a part of its documents (repeatable); default: PanGu-Σ's, or a reserved one of the tokenizer",
    )
    add.add_argument("--tokenizer", metavar="FILE", type=Path, help="a sentencepiece model for a vocabulary of its own")

    copy = _action(actions, "copy", "a domain becomes a copy of another one", "the domain that changes")
    copy.add_argument("--from", dest="parent", metavar="DOMAIN", required=True, help="the domain that is copied")

    replaced = _action(actions, "replace", "a domain becomes that of another run", "the domain that changes")
    replaced.add_argument("--with", dest="other", metavar="DIR", type=Path, required=True, help="the other run")
    replaced.add_argument("--with-domain", metavar="NAME", help="its domain; default: the one of the same name")

    _action(actions, "remove", "a domain goes", "the domain that goes")

    resized = _action(actions, "resize", "more experts (same function) or fewer (merged)", "the domain that changes")
    resized.add_argument("--experts", metavar="N", type=int, required=True, help="per RRE layer")
    resized.add_argument("--data", metavar="RUN", type=Path, help="count tokens in this run's token shards")


def _action(actions, name: str, summary: str, domain: str | None) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    if domain:
        parser.add_argument("domain", help=domain)
        parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="where the new checkpoint goes")
        parser.add_argument(
            "--verify", action="store_true", help="compare the hash of every file now; reading them will do it anyway"
        )
    parser.add_argument("--checkpoint", metavar="DIR", type=Path, required=True, help="a checkpoint or a run folder")
    return parser


def run(options: argparse.Namespace, config: Config) -> None:
    from mindpangu.checkpoint import CheckpointReader, refuse_settings
    from mindpangu.lifecycle.blueprint import Blueprint
    from mindpangu.lifecycle.build import build
    from mindpangu.lifecycle.listing import list_experts

    reader = CheckpointReader(options.checkpoint)
    refuse_settings(reader, config)
    blueprint = Blueprint.from_checkpoint(reader)
    if options.action == "list":
        print(list_experts(blueprint))
        return
    blueprint = _EDITS[options.action](blueprint, options)
    arguments = {key: str(value) for key, value in vars(options).items() if value and key not in ("verb", "config")}
    folder = build(blueprint, options.out, {"verb": "experts", **arguments}, options.verify)
    sizes = ", ".join(f"{domain.name} {domain.num_experts}" for domain in blueprint.domains)
    print(f"experts: {options.action} {options.domain} → {folder} (experts per layer: {sizes})")


def _add(blueprint, options):
    from mindpangu.checkpoint import CheckpointReader
    from mindpangu.lifecycle import add, domains
    from mindpangu.lifecycle.resize import resize
    from mindpangu.tokenizer import Tokenizer

    if options.noise and not options.from_dense:
        raise ConfigError("--noise goes with --from-dense; a copy of a domain has none")
    if options.parent and options.tokenizer:
        raise ConfigError(
            f"--from {options.parent} takes over a table, which is only good for the tokens of its own tokenizer; with "
            "--tokenizer give --fresh or --from-dense DIR"
        )
    tokenizer = Tokenizer.load(options.tokenizer) if options.tokenizer else None
    new = add.NewDomain(
        options.domain, options.kind or "", tuple(options.control_token), tokenizer, options.parent or ""
    )
    blueprint, domain = add.add_domain(blueprint, new)
    if options.parent:
        blueprint = domains.from_domain(blueprint, options.parent, domain.name)
        return blueprint if options.experts is None else resize(blueprint, domain.name, options.experts)
    number = domain.num_experts if options.experts is None else options.experts
    if options.fresh:
        return domains.fresh(blueprint, domain.name, number)
    return domains.from_dense(blueprint, CheckpointReader(options.from_dense), domain.name, number, options.noise)


def _copy(blueprint, options):
    from mindpangu.lifecycle.domains import from_domain

    return from_domain(blueprint, options.parent, options.domain)


def _replace(blueprint, options):
    from mindpangu.checkpoint import CheckpointReader
    from mindpangu.lifecycle.blueprint import Blueprint
    from mindpangu.lifecycle.domains import replace_domain

    other = Blueprint.from_checkpoint(CheckpointReader(options.other))
    return replace_domain(blueprint, options.domain, other, options.with_domain or options.domain)


def _remove(blueprint, options):
    from mindpangu.lifecycle.domains import remove_domains

    return remove_domains(blueprint, {options.domain})


def _resize(blueprint, options):
    from mindpangu.data import TRAIN, TokenShards
    from mindpangu.lifecycle.resize import resize

    counts_V = None
    if options.data:
        domain = blueprint.domain(options.domain)
        shards = TokenShards.open(RunFolder(options.data).data)
        if domain.name not in shards.domain_names:
            raise ConfigError(f"{shards.folder} has no text of domain {domain.name!r}, whose tokens --data is to count")
        shards.require_tokenizer(blueprint.tokenizer_of(domain).digest)
        counts_V = shards.token_counts(domain.name, TRAIN, blueprint.contents[domain.name].table.experts_LV.shape[1])
    return resize(blueprint, options.domain, options.experts, counts_V)


_EDITS = {"add": _add, "copy": _copy, "replace": _replace, "remove": _remove, "resize": _resize}
