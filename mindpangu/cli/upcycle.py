"""Upcycle a dense model to a sparse one: each expert starts as a copy of its layer's feed-forward network.

The PanGu-Σ paper calls this inheritance.

  mindpangu upcycle --config child.yaml --parent output/dense --out output/upcycled
  mindpangu train --config child.yaml --load output/upcycled

The run folder of --config must have its tokenizer and its routing table.
"""

import argparse
from pathlib import Path

from mindpangu.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--parent",
        metavar="DIR",
        type=Path,
        required=True,
        help="Upcycle this dense checkpoint, or the newest one of this run folder.",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="Write the child's checkpoint to this folder."
    )
    parser.add_argument(
        "--noise",
        metavar="X",
        type=float,
        default=0.0,
        help="Add noise to each expert; X is its standard deviation relative to that of the weights (default: "
        "%(default)s).",
    )
    parser.add_argument(
        "--new-rows",
        choices=("mean", "random"),
        default="mean",
        help="Initialise the embedding row of a token that the parent lacks with the mean row of the parent's tokens "
        "that spell it, or with random numbers (default: %(default)s).",
    )


def run(options: argparse.Namespace, config: Config) -> None:
    from mindpangu.checkpoint import CheckpointReader
    from mindpangu.language_model import ModelParts
    from mindpangu.lifecycle.blueprint import Blueprint
    from mindpangu.lifecycle.build import build
    from mindpangu.lifecycle.upcycle import upcycle

    parts = ModelParts.from_run(config)
    parent = Blueprint.from_checkpoint(CheckpointReader(options.parent))
    child, rows = upcycle(parent, parts, options.noise, options.new_rows)
    made_by = {"verb": "upcycle", "parent": str(options.parent), "noise": options.noise, "new_rows": options.new_rows}
    written = build(child, options.out, made_by)
    print(
        f"upcycle: {rows.shared:,} tokens have the parent's row, {rows.composed:,} the mean of several, "
        f"{rows.random:,} a random one → {written}"
    )
