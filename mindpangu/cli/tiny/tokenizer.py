"""Keep the most frequent pieces of a tokenizer; with --checkpoint, of a trained model's tokenizer and embedding.

  mindpangu tiny tokenizer --tokenizer recipes/tokenizer/pangu_alpha_40k.model --size 8000 --out output/compact
  mindpangu tiny tokenizer --checkpoint output/cpu_smoke --size 4000 --out output/fewer_tokens

Pieces are counted in the training part of the corpus (of the configuration, or of --corpus), and the rest is removed;
nothing is trained. Control tokens, bytes and user-defined symbols always stay, and of a BPE model the pieces that the
others are merged from. Text that needs only pieces that stay is tokenized as before.

--out then holds

  tokenizer.model      the smaller tokenizer
  counts.safetensors   how often each piece occurs; used again where text and tokenizer are the same
  report.json          the printed table: coverage, bytes a token, the embedding's share of the parameters, by size
  curve.png            the same as a picture
  iteration_…          with --checkpoint: the smaller checkpoint; all but vocabulary and embedding is as it was
"""

import argparse
from pathlib import Path

from mindpangu.config import Config, resolve
from mindpangu.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tokenizer", metavar="FILE", type=Path, help="the sentencepiece model to make smaller")
    source.add_argument("--checkpoint", metavar="DIR", type=Path, help="a checkpoint or a run folder to make smaller")
    parser.add_argument("--size", metavar="N", type=int, required=True, help="pieces of the smaller tokenizer")
    parser.add_argument("--sizes", metavar="N,N…", help="sizes to compare it with; default: 1000, 2000, 4000, 8000 …")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="where everything goes")
    parser.add_argument(
        "--corpus",
        metavar="FILE",
        nargs="+",
        help="jsonl files of any records, or plain text, whose documents end at blank lines (glob patterns); "
        "default: data.corpus, records of the run's domains",
    )
    parser.add_argument(
        "--fields",
        metavar="NAME,NAME…",
        default="text,zh,en",
        help="with --corpus: fields of records that hold text; default: %(default)s",
    )
    parser.add_argument(
        "--verify", action="store_true", help="with --checkpoint: compare the hash of every file of it now"
    )
    parser.add_argument(
        "--counts", metavar="FILE", type=Path, help="where the counts are, or go; default: counts.safetensors in --out"
    )


def run(options: argparse.Namespace, config: Config) -> None:
    from mindpangu.tiny.tokenizer.compaction import COUNTS, TOKENIZER, compact_tokenizer
    from mindpangu.tiny.tokenizer.documents import FileDocuments, RunDocuments
    from mindpangu.tokenizer import Tokenizer

    sizes = _numbers(options.sizes) if options.sizes else None
    if options.out.exists() and not options.out.is_dir():
        raise ConfigError(f"--out {options.out} is a file; give the name of a folder")
    if options.counts is not None and options.counts.is_dir():
        raise ConfigError(f"--counts {options.counts} is a folder; give the name of a file")
    blueprint = _blueprint(options, config) if options.checkpoint else None
    if blueprint is not None:
        (tokenizer,) = blueprint.tokenizers.values()
    else:
        tokenizer = Tokenizer.load(options.tokenizer)
        if options.tokenizer.resolve() == (options.out / TOKENIZER).resolve():
            raise ConfigError(
                f"--tokenizer {options.tokenizer} would be replaced by the smaller one; choose another --out"
            )
    fields = [name.strip() for name in options.fields.split(",") if name.strip()]
    documents = FileDocuments(options.corpus, fields) if options.corpus else RunDocuments(config)
    with_model = blueprint is not None or options.config is not None or config.model != resolve(Config()).model
    result = compact_tokenizer(
        tokenizer, documents, options.size, sizes, config, options.counts or options.out / COUNTS, with_model
    )
    folder = options.out
    if blueprint is not None:
        from mindpangu.lifecycle.build import build
        from mindpangu.lifecycle.vocabulary import keep_vocabulary

        smaller = keep_vocabulary(blueprint, dict.fromkeys(blueprint.tokenizers, result.kept))
        made_by = {"verb": "tiny tokenizer", "from": str(options.checkpoint), "size": options.size}
        folder = build(smaller, options.out, made_by, options.verify)
    result.write(options.out)
    print(result.table())
    print(f"tokenizer: {result.tokenizer.vocab_size:,} of {tokenizer.vocab_size:,} pieces → {folder}")


def _blueprint(options: argparse.Namespace, config: Config):
    from mindpangu.checkpoint import CheckpointReader, refuse_settings
    from mindpangu.lifecycle.blueprint import Blueprint
    from mindpangu.lifecycle.output import require_free

    reader = CheckpointReader(options.checkpoint)
    refuse_settings(reader, config)
    require_free(options.out)
    blueprint = Blueprint.from_checkpoint(reader)
    if len(blueprint.tokenizers) > 1:
        raise ConfigError(
            f"{reader.folder} has {len(blueprint.tokenizers)} tokenizers, of the vocabularies "
            f"{', '.join(blueprint.tokenizers)}; extract the domains of one vocabulary first (mindpangu extract)"
        )
    return blueprint


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"--sizes is {text!r}; give whole numbers, e.g. --sizes 1000,2000,4000") from None
