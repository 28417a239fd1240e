"""Keep the most frequent pieces of a tokenizer, and with --checkpoint the matching embedding rows of a trained model.

  mindpangu tiny tokenizer --tokenizer recipes/tokenizer/pangu_alpha_40k.model --size 8000 --out output/compact
  mindpangu tiny tokenizer --checkpoint output/cpu_smoke --size 4000 --out output/fewer_tokens

Counts the pieces in the training split of the corpus (data.corpus, or --corpus) and removes the rare ones; nothing is
trained. Control tokens, bytes and user-defined symbols are always kept. In a BPE model, so are the pieces that kept
pieces are merged from. Text that needs only kept pieces is tokenized as before.

--out then holds

  tokenizer.model      the smaller tokenizer
  counts.safetensors   the piece counts; reused while text and tokenizer are the same
  report.json          the printed table: coverage, bytes per token and the embedding's share of the parameters, by size
  curve.png            a plot of the table
  iteration_…          with --checkpoint: the smaller checkpoint; only vocabulary and embedding change
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mindpangu.cli.option_types import glob_pattern, refuse_unused
from mindpangu.config import Config, resolve
from mindpangu.errors import ConfigError
from mindpangu.locks import locked, refuse_checkpoint
from mindpangu.user_input import parse_integer

if TYPE_CHECKING:
    from mindpangu.lifecycle.blueprint import Blueprint


_FIELDS = "text,zh,en"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tokenizer", metavar="FILE", type=Path, help="Make this sentencepiece model smaller.")
    source.add_argument(
        "--checkpoint",
        metavar="DIR",
        type=Path,
        help="Make the tokenizer and the embedding of this checkpoint smaller, or those of the newest one of this run "
        "folder.",
    )
    parser.add_argument("--size", metavar="N", type=int, required=True, help="Keep this many pieces.")
    parser.add_argument("--sizes", metavar="N,N…", help="Compare with these sizes (default: 1000, 2000, 4000, 8000 …).")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="Write the results to this folder.")
    parser.add_argument(
        "--corpus",
        metavar="FILE",
        type=glob_pattern,
        nargs="+",
        help="Count in these files (glob patterns): jsonl with any records, or plain text with blank lines between "
        "documents (default: data.corpus, with the records of the run's domains).",
    )
    parser.add_argument(
        "--fields",
        metavar="NAME,NAME…",
        help=f"With --corpus: read the text from these fields of the records (default: {_FIELDS}).",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="With --checkpoint: verify the hash of every file now. Otherwise unchanged files are verified when they "
        "are first read.",
    )
    parser.add_argument(
        "--counts",
        metavar="FILE",
        type=Path,
        help="Read the piece counts from this file if it is up to date, else write them to it (default: "
        "counts.safetensors in --out).",
    )


def run(options: argparse.Namespace, config: Config) -> None:
    if options.corpus is None:
        refuse_unused(options, "without --corpus, tiny tokenizer", "fields")
    if options.checkpoint is None:
        refuse_unused(options, "without --checkpoint, tiny tokenizer", "verify")
    with locked(options.out):
        _run(options, config)


def _run(options: argparse.Namespace, config: Config) -> None:
    from mindpangu.tiny.tokenizer.compaction import COUNTS, TOKENIZER, compact_tokenizer, refuse_other_files
    from mindpangu.tiny.tokenizer.documents import FileDocuments, RunDocuments
    from mindpangu.tokenizer import Tokenizer

    sizes = _parse_sizes(options.sizes) if options.sizes else None
    if options.out.exists() and not options.out.is_dir():
        raise ConfigError(f"--out {options.out} is a file; give the name of a folder")
    if options.counts is not None and options.counts.is_dir():
        raise ConfigError(f"--counts {options.counts} is a folder; give the name of a file")
    blueprint = _load_blueprint(options, config) if options.checkpoint else None
    if blueprint is not None:
        (tokenizer,) = blueprint.tokenizers.values()
    else:
        tokenizer = Tokenizer.load(options.tokenizer, follow_link=True, given_by="--tokenizer")
        if options.tokenizer.resolve() == (options.out / TOKENIZER).resolve():
            raise ConfigError(
                f"--tokenizer {options.tokenizer} would be replaced by the smaller one; choose another --out"
            )
    for file in (options.out / TOKENIZER, options.counts or options.out / COUNTS):
        refuse_checkpoint(file)
    refuse_other_files(options.out)
    fields_text = _FIELDS if options.fields is None else options.fields
    fields = [name.strip() for name in fields_text.split(",") if name.strip()]
    documents = FileDocuments(options.corpus, fields) if options.corpus else RunDocuments(config)
    with_model = blueprint is not None or options.config is not None or config.model != resolve(Config()).model
    result = compact_tokenizer(
        tokenizer, documents, options.size, sizes, config, options.counts or options.out / COUNTS, with_model
    )
    folder = options.out
    result.write(options.out)  # first, because nothing is written to a folder that has a checkpoint
    if blueprint is not None:
        from mindpangu.lifecycle.build import build
        from mindpangu.lifecycle.vocabulary import keep_vocabulary

        smaller = keep_vocabulary(blueprint, dict.fromkeys(blueprint.tokenizers, result.kept))
        made_by = {"verb": "tiny tokenizer", "from": str(options.checkpoint), "size": options.size}
        folder = build(smaller, options.out, made_by, options.verify)
    print(result.table())
    print(f"tokenizer: {result.tokenizer.vocab_size:,} of {tokenizer.vocab_size:,} pieces → {folder}")


def _load_blueprint(options: argparse.Namespace, config: Config) -> "Blueprint":
    from mindpangu.checkpoint import CheckpointReader, refuse_settings
    from mindpangu.lifecycle.blueprint import Blueprint
    from mindpangu.lifecycle.output import require_free

    reader = CheckpointReader(options.checkpoint)
    refuse_settings(reader, config)
    require_free(options.out)
    blueprint = Blueprint.from_checkpoint(reader)
    if len(blueprint.tokenizers) > 1:
        raise ConfigError(
            f"{reader.folder} has {len(blueprint.tokenizers)} tokenizers, for the vocabularies "
            f"{', '.join(blueprint.tokenizers)}; extract the domains of one vocabulary first (mindpangu extract)"
        )
    return blueprint


def _parse_sizes(text: str) -> list[int]:
    try:
        return [parse_integer(word.strip()) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"--sizes is {text!r}; give whole numbers, e.g. --sizes 1000,2000,4000") from None
