"""List, add, copy, replace, remove and resize the domains' groups of experts.

Every action but `list` writes a new checkpoint to --out, in which everything else stays as it is, bit for bit:

  mindpangu experts add poetry --from zh --checkpoint output/cpu_smoke --out output/with_poetry
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder
from mindpangu.errors import ConfigError

if TYPE_CHECKING:
    from mindpangu.lifecycle.blueprint import Blueprint

EPILOG = (
    "The configuration is the checkpoint's: --config and configuration keys are accepted only if they agree with it."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_action(actions, "list", "List the domains of a checkpoint with their experts, update counts and tables.", None)

    add = _add_action(
        actions,
        "add",
        "Add a domain: a copy of another one, copies of a dense model's feed-forward networks, or fresh experts.",
        "Name of the new domain.",
    )
    source = add.add_mutually_exclusive_group(required=True)
    source.add_argument("--from", dest="parent", metavar="NAME", help="Copy this domain of the model.")
    source.add_argument(
        "--from-dense", metavar="DIR", type=Path, help="Copy the feed-forward networks of this dense model."
    )
    source.add_argument("--fresh", action="store_true", help="Draw the experts at random.")
    add.add_argument(
        "--experts",
        metavar="N",
        type=int,
        help="Create this many experts per RRE layer (default: as many as the parent, or domains.experts_per_domain).",
    )
    add.add_argument(
        "--noise",
        metavar="X",
        type=float,
        default=0.0,
        help="With --from-dense: add noise to each expert; X is its standard deviation relative to that of the weights "
        "(default: %(default)s).",
    )
    add.add_argument(
        "--kind",
        choices=("monolingual", "bilingual", "code"),
        help="Kind of the domain's records (default: that of PanGu-Σ's domain of this name, or of the parent).",
    )
    add.add_argument(
        "--control-token",
        metavar="TOKEN",
        action="append",
        default=[],
        help="Open the domain's documents with this token; repeat it if they have several parts (default: PanGu-Σ's "
        "token, or a reserved one of the tokenizer).",
    )
    add.add_argument(
        "--tokenizer",
        metavar="FILE",
        type=Path,
        help="Give the domain a vocabulary of its own with this sentencepiece model.",
    )

    copy = _add_action(actions, "copy", "Turn a domain into a copy of another one.", "Name of the domain to change.")
    copy.add_argument("--from", dest="parent", metavar="NAME", required=True, help="Copy this domain.")

    replace = _add_action(
        actions, "replace", "Replace a domain with one of another run.", "Name of the domain to change."
    )
    replace.add_argument(
        "--with", dest="other", metavar="DIR", type=Path, required=True, help="Take it from this checkpoint or run."
    )
    replace.add_argument(
        "--with-domain", metavar="NAME", help="Take this domain of it (default: the one of the same name)."
    )

    _add_action(actions, "remove", "Remove a domain.", "Name of the domain to remove.")

    resize = _add_action(
        actions,
        "resize",
        "Give a domain more experts (its function stays the same) or fewer (they are merged).",
        "Name of the domain to change.",
    )
    resize.add_argument(
        "--experts", metavar="N", type=int, required=True, help="Create this many experts per RRE layer."
    )
    resize.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        help="Balance the load by the token counts of this run folder (default: as if all tokens were equally "
        "frequent).",
    )


def _add_action(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, summary: str, domain_help: str | None
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=summary, description=summary, epilog=EPILOG, allow_abbrev=False)
    if domain_help:
        parser.add_argument("domain", metavar="NAME", help=domain_help)
        parser.add_argument(
            "--out", metavar="DIR", type=Path, required=True, help="Write the new checkpoint to this folder."
        )
        parser.add_argument(
            "--verify",
            action="store_true",
            help="Verify the hash of every file now. Otherwise unchanged files are verified when they are first read.",
        )
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        type=Path,
        required=True,
        help="Read this checkpoint, or the newest one of this run folder.",
    )
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


def _add(blueprint: "Blueprint", options: argparse.Namespace) -> "Blueprint":
    from mindpangu.checkpoint import CheckpointReader
    from mindpangu.lifecycle import add, domains
    from mindpangu.lifecycle.resize import resize
    from mindpangu.tokenizer import Tokenizer

    if options.noise and not options.from_dense:
        raise ConfigError("--noise goes with --from-dense; copied and fresh experts get none")
    if options.parent and options.tokenizer:
        raise ConfigError(
            f"--from {options.parent} copies a table, which is valid only with its own tokenizer; with "
            "--tokenizer, give --fresh or --from-dense DIR"
        )
    tokenizer = (
        Tokenizer.load(options.tokenizer, follow_link=True, given_by="--tokenizer") if options.tokenizer else None
    )
    new = add.NewDomain(
        options.domain, options.kind or "", tuple(options.control_token), tokenizer, options.parent or ""
    )
    blueprint, domain = add.add_domain(blueprint, new)
    if options.parent:
        blueprint = domains.from_domain(blueprint, options.parent, domain.name)
        return blueprint if options.experts is None else resize(blueprint, domain.name, options.experts)
    num_experts = domain.num_experts if options.experts is None else options.experts
    if options.fresh:
        return domains.fresh(blueprint, domain.name, num_experts)
    dense = CheckpointReader(options.from_dense)
    return domains.from_dense(blueprint, dense, domain.name, num_experts, options.noise)


def _copy(blueprint: "Blueprint", options: argparse.Namespace) -> "Blueprint":
    from mindpangu.lifecycle.domains import from_domain

    return from_domain(blueprint, options.parent, options.domain)


def _replace(blueprint: "Blueprint", options: argparse.Namespace) -> "Blueprint":
    from mindpangu.checkpoint import CheckpointReader
    from mindpangu.lifecycle.blueprint import Blueprint
    from mindpangu.lifecycle.domains import replace_domain

    other = Blueprint.from_checkpoint(CheckpointReader(options.other))
    return replace_domain(blueprint, options.domain, other, options.with_domain or options.domain)


def _remove(blueprint: "Blueprint", options: argparse.Namespace) -> "Blueprint":
    from mindpangu.lifecycle.domains import remove_domains

    return remove_domains(blueprint, {options.domain})


def _resize(blueprint: "Blueprint", options: argparse.Namespace) -> "Blueprint":
    from mindpangu.data import TRAIN, TokenShards
    from mindpangu.lifecycle.resize import resize

    counts_V = None
    if options.data:
        domain = blueprint.domain(options.domain)
        shards = TokenShards.open(RunFolder(options.data).data)
        if domain.name not in shards.domain_names:
            raise ConfigError(
                f"{shards.folder} contains no text in domain {domain.name!r}, so --data has no tokens to count"
            )
        shards.require_tokenizer(blueprint.tokenizer_of(domain))
        num_tokens = blueprint.contents[domain.name].table.experts_LV.shape[1]
        counts_V = shards.token_counts(domain.name, TRAIN, num_tokens)
    return resize(blueprint, options.domain, options.experts, counts_V)


_EDITS = {"add": _add, "copy": _copy, "replace": _replace, "remove": _remove, "resize": _resize}
