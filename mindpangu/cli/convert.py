"""Convert a dense model from or to PanGu-α's published format.

from-pangu-alpha   converts a .ckpt file, or a set of one file per rank with its strategy file, to a checkpoint
to-pangu-alpha     converts a dense checkpoint to a .ckpt file and its tokenizer

mindpangu convert from-pangu-alpha --source Pangu-alpha_2.6B.ckpt --config recipes/pangu_alpha_2.6b.yaml \\
    --tokenizer recipes/tokenizer/pangu_alpha_40k.model --out output/pangu_alpha_2.6b
mindpangu convert to-pangu-alpha --checkpoint output/pangu_alpha_2.6b --out published
"""

import argparse
from pathlib import Path

from mindpangu.cli.option_types import refuse_unused
from mindpangu.config import ONE_PROCESS, Config
from mindpangu.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("from-pangu-alpha", "to-pangu-alpha"), help="Direction; see above.")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="Write the result to this folder.")
    from_group = parser.add_argument_group(
        "from-pangu-alpha", "Settings that the tensors do not reveal, e.g. model.num_heads, come from --config."
    )
    from_group.add_argument(
        "--source",
        metavar="PATH",
        type=Path,
        help="Convert this .ckpt file, or the set of files in this folder (filerted_0.ckpt …). Embedding tables in "
        ".npy files next to them are included.",
    )
    from_group.add_argument("--strategy", metavar="FILE", type=Path, help="Use this strategy file for the set.")
    from_group.add_argument(
        "--tokenizer",
        metavar="FILE",
        type=Path,
        help="Use this sentencepiece model, with which the source was trained.",
    )
    to_group = parser.add_argument_group("to-pangu-alpha", "Takes its configuration from the checkpoint.")
    to_group.add_argument(
        "--checkpoint",
        metavar="DIR",
        type=Path,
        help="Convert this checkpoint, or the newest one of this run folder.",
    )
    to_group.add_argument(
        "--dtype",
        choices=("fp32", "fp16"),
        help="Write weights in this format (default: fp32, which is lossless).",
    )
    to_group.add_argument(
        "--separate-tables", action="store_true", help="Write the three embedding tables as .npy files."
    )


def settings(options: argparse.Namespace) -> dict[str, str]:
    return ONE_PROCESS if options.action == "from-pangu-alpha" else {}


def run(options: argparse.Namespace, config: Config) -> None:
    from mindpangu.lifecycle.pangu_alpha import from_pangu_alpha, to_pangu_alpha

    if options.action == "from-pangu-alpha":
        _require(options, "source", "config", "tokenizer")
        refuse_unused(options, "convert from-pangu-alpha", "checkpoint", "dtype", "separate_tables")
        folder, skipped = from_pangu_alpha(options.source, options.strategy, config, options.tokenizer, options.out)
        if skipped:
            print(f"convert: left out {len(skipped)} tensors that only training needs, e.g. {skipped[0]}")
        print(f"convert: {options.source} → {folder}")
    else:
        from mindpangu.checkpoint import CheckpointReader, refuse_settings

        _require(options, "checkpoint")
        refuse_unused(options, "convert to-pangu-alpha", "source", "strategy", "tokenizer")
        reader = CheckpointReader(options.checkpoint)
        refuse_settings(reader, config)
        file = to_pangu_alpha(reader, options.out, options.dtype or "fp32", options.separate_tables)
        print(f"convert: {reader.folder} → {file}")


def _require(options: argparse.Namespace, *names: str) -> None:
    missing = [f"--{name}" for name in names if getattr(options, name) is None]
    if missing:
        raise ConfigError(f"convert {options.action} needs {' and '.join(missing)}")
