"""Take some domains out of a model, as a complete checkpoint of their own or as plain safetensors.

mindpangu extract --domains zh,code --checkpoint output/cpu_smoke --out output/zh_code

Its logits are the full model's, bit for bit. Files are taken over one by one; memory stays small.
"""

import argparse
from pathlib import Path

from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder
from mindpangu.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", metavar="DIR", type=Path, required=True, help="a checkpoint or a run folder")
    parser.add_argument("--domains", metavar="NAME,NAME…", required=True, help="the domains to take")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="where the new checkpoint goes")
    parser.add_argument(
        "--vocabulary-of",
        metavar="RUN",
        type=Path,
        help="drop the tokens that do not occur in these domains' token shards of a run folder, and their rows",
    )
    parser.add_argument(
        "--weights-only", action="store_true", help="leave Adam's moments out: a third of the size, to use or load"
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare the hash of every file now; reading them will do it anyway"
    )
    parser.add_argument(
        "--export", action="store_true", help="write model.safetensors and config.json for other programs; one domain"
    )


def run(options: argparse.Namespace, config: Config) -> None:
    from dataclasses import replace

    from mindpangu.checkpoint import CheckpointReader, refuse_settings
    from mindpangu.lifecycle.blueprint import Blueprint
    from mindpangu.lifecycle.build import build
    from mindpangu.lifecycle.extract import extract

    names = list(dict.fromkeys(name.strip() for name in options.domains.split(",") if name.strip()))
    if not names:
        raise ConfigError("--domains names none; give some, e.g. --domains zh,code")
    reader = CheckpointReader(options.checkpoint)
    refuse_settings(reader, config)
    blueprint = extract(Blueprint.from_checkpoint(reader), names)
    before = sum(tokenizer.vocab_size for tokenizer in blueprint.tokenizers.values())
    if options.vocabulary_of:
        from mindpangu.lifecycle.vocabulary import drop_vocabulary

        blueprint = drop_vocabulary(blueprint, _token_counts(blueprint, RunFolder(options.vocabulary_of)))
        after = sum(tokenizer.vocab_size for tokenizer in blueprint.tokenizers.values())
        print(f"extract: {after:,} of {before:,} tokens stay")
    if options.export:
        from mindpangu.lifecycle.export import export

        export(blueprint, options.out)
        print(f"extract: {names[0]} → {options.out} (model.safetensors, config.json, tokenizer.model)")
        return
    if options.weights_only:
        blueprint = replace(blueprint, with_moments=False)
    made_by = {"verb": "extract", "from": str(options.checkpoint), "domains": names}
    folder = build(blueprint, options.out, made_by, options.verify)
    print(f"extract: {', '.join(names)} → {folder}")


def _token_counts(blueprint, folder: RunFolder):
    """vocabulary → how often each token occurs in both splits of its domains."""
    from mindpangu.data import HELDOUT, TRAIN, TokenShards

    shards, counts = TokenShards.open(folder.data, verify=True), {}
    for domain in blueprint.domains:
        if domain.name not in shards.domain_names:
            raise ConfigError(f"{shards.folder} has no text of domain {domain.name!r}; --vocabulary-of needs it")
        tokenizer = blueprint.tokenizer_of(domain)
        shards.require_tokenizer(tokenizer.digest)
        for split in (TRAIN, HELDOUT):
            found = shards.token_counts(domain.name, split, tokenizer.vocab_size)
            counts[domain.vocabulary] = counts.get(domain.vocabulary, 0) + found
    return counts
