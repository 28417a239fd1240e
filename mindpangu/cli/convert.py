"""Convert a dense model from PanGu-α's published format, or to it.

from-pangu-alpha   a .ckpt file, or a folder with a file per rank and its strategy file, into a checkpoint
to-pangu-alpha     a dense checkpoint into a .ckpt file and its tokenizer

mindpangu convert from-pangu-alpha --source Pangu-alpha_2.6B.ckpt --config recipes/pangu_alpha_2.6b.yaml \\
    --tokenizer recipes/tokenizer/pangu_alpha_40k.model --out output/pangu_alpha_2.6b
mindpangu convert to-pangu-alpha --checkpoint output/pangu_alpha_2.6b --out published
"""

import argparse
from pathlib import Path

from mindpangu.config import ONE_PROCESS, Config
from mindpangu.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("from-pangu-alpha", "to-pangu-alpha"))
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the result")
    there = parser.add_argument_group(
        "from-pangu-alpha", "--config says what the tensors do not, e.g. model.num_heads."
    )
    there.add_argument(
        "--source",
        metavar="PATH",
        type=Path,
        help="a .ckpt file, or the folder of a set (filerted_0.ckpt …); tables as .npy are found beside",
    )
    there.add_argument("--strategy", metavar="FILE", type=Path, help="strategy file of a set")
    there.add_argument("--tokenizer", metavar="FILE", type=Path, help="sentencepiece model of the source")
    back = parser.add_argument_group("to-pangu-alpha")
    back.add_argument("--checkpoint", metavar="DIR", type=Path, help="a checkpoint or a run folder")
    back.add_argument("--dtype", choices=("fp32", "fp16"), default="fp32", help="default: %(default)s, which is exact")
    back.add_argument("--separate-tables", action="store_true", help="the three embedding tables as .npy files")


def settings(options: argparse.Namespace) -> dict[str, str]:
    return ONE_PROCESS


def run(options: argparse.Namespace, config: Config) -> None:
    from mindpangu.lifecycle.pangu_alpha import from_pangu_alpha, to_pangu_alpha

    if options.action == "from-pangu-alpha":
        _require(options, "source", "config", "tokenizer")
        folder, skipped = from_pangu_alpha(options.source, options.strategy, config, options.tokenizer, options.out)
        if skipped:
            print(f"convert: left out {len(skipped)} tensors of the training, {skipped[0]} for one")
        print(f"convert: {options.source} → {folder}")
    else:
        from mindpangu.checkpoint import CheckpointReader

        _require(options, "checkpoint")
        reader = CheckpointReader(options.checkpoint)
        file = to_pangu_alpha(reader, options.out, options.dtype, options.separate_tables)
        print(f"convert: {reader.folder} → {file}")


def _require(options: argparse.Namespace, *names: str) -> None:
    missing = [f"--{name}" for name in names if getattr(options, name) is None]
    if missing:
        raise ConfigError(f"convert {options.action} needs {' and '.join(missing)}")
