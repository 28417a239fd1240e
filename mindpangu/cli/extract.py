"""Extract some domains of a model as a complete checkpoint or as plain safetensors.

  mindpangu extract --domains zh,code --checkpoint output/cpu_smoke --out output/zh_code

The logits are the full model's, bit for bit. The model is never loaded: its files are linked or copied one by one.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mindpangu.cli import experts
from mindpangu.cli.option_types import refuse_unused
from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder
from mindpangu.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from mindpangu.lifecycle.blueprint import Blueprint

EPILOG = experts.EPILOG


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        type=Path,
        required=True,
        help="Extract from this checkpoint, or from the newest one of this run folder.",
    )
    parser.add_argument("--domains", metavar="NAME,NAME…", required=True, help="Extract these domains.")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="Write the new checkpoint to this folder."
    )
    parser.add_argument(
        "--vocabulary-of",
        metavar="DIR",
        type=Path,
        help="Drop the tokens that do not occur in the domains' token shards of this run folder, with their embedding "
        "rows.",
    )
    parser.add_argument(
        "--weights-only",
        action="store_true",
        help="Leave out Adam's moments. The checkpoint is a third of the size; it can be used, or loaded by train.",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="Verify the hash of every file now. Otherwise unchanged files are verified when they are first read.",
    )
    parser.add_argument(
        "--export",
        action="store_true",
        help="Write one domain as model.safetensors and config.json, for other programs.",
    )


def run(options: argparse.Namespace, config: Config) -> None:
    from dataclasses import replace

    from mindpangu.checkpoint import CheckpointReader, refuse_settings
    from mindpangu.lifecycle.blueprint import Blueprint
    from mindpangu.lifecycle.build import build
    from mindpangu.lifecycle.extract import extract

    if options.export:
        from mindpangu.lifecycle.export import export

        # it has no moments, and every file that it reads is verified
        refuse_unused(options, "an export", "weights_only", "verify")
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
        print(f"extract: kept {after:,} of {before:,} tokens")
    if options.export:
        export(blueprint, options.out)
        print(f"extract: {names[0]} → {options.out} (model.safetensors, config.json, tokenizer.model)")
        return
    if options.weights_only:
        blueprint = replace(blueprint, with_moments=False)
    made_by = {"verb": "extract", "from": str(options.checkpoint), "domains": names}
    folder = build(blueprint, options.out, made_by, options.verify)
    print(f"extract: {', '.join(names)} → {folder}")


def _token_counts(blueprint: "Blueprint", folder: RunFolder) -> dict[str, "np.ndarray"]:
    """Returns, for each vocabulary, the number of occurrences of each token in both splits of its domains."""
    from mindpangu.data import HELDOUT, TRAIN, TokenShards

    shards = TokenShards.open(folder.data, verify=True)
    counts: dict[str, np.ndarray] = {}
    for domain in blueprint.domains:
        if domain.name not in shards.domain_names:
            raise ConfigError(
                f"{shards.folder} contains no text in domain {domain.name!r}, which --vocabulary-of needs"
            )
        tokenizer = blueprint.tokenizer_of(domain)
        shards.require_tokenizer(tokenizer)
        for split in (TRAIN, HELDOUT):
            found = shards.token_counts(domain.name, split, tokenizer.vocab_size)
            counts[domain.vocabulary] = counts.get(domain.vocabulary, 0) + found
    return counts
