"""The command line of the comparison tools: common options, and overrides of the recipe."""

import argparse
from collections.abc import Collection
from pathlib import Path

from comparison.intervals import MAX_SEEDS
from mindpangu.cli.main import refuse_unknown_keys, split_overrides
from mindpangu.config import load_config
from mindpangu.errors import MindPanguError

_RESERVED_KEYS = ("training.seed", "training.run_name", "checkpoint.save_steps", "checkpoint.keep_last")


def comparison_parser(description: str, config: str, default: str, fewest_seeds: int = 1) -> argparse.ArgumentParser:
    """Returns a parser with the options --config, --seeds and --json; parse with `read_arguments`.

    Args:
        description: help text of the tool.
        config: default recipe.
        default: default number of seeds, as the help text shows it; the option itself defaults to None.
        fewest_seeds: smallest allowed number of seeds.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=config, help="recipe; default: %(default)s")
    add_seeds(parser, default, fewest_seeds)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser


def add_seeds(parser: argparse.ArgumentParser, default: str, fewest: int = 1) -> None:
    """Adds the option --seeds, up to the number of seeds that intervals support. See `comparison_parser`."""
    parser.add_argument(
        "--seeds",
        type=int,
        choices=range(fewest, MAX_SEEDS + 1),
        metavar=f"{fewest}…{MAX_SEEDS}",
        help=f"number of seeds; default: {default}",
    )


def read_arguments(
    parser: argparse.ArgumentParser, reserved: Collection[str] = ()
) -> tuple[argparse.Namespace, dict[str, str]]:
    """Parses the command line.

    Exits with a usage error for unknown options, an impossible configuration, reserved keys, or a --json path that
    could not be written after hours of training.

    Args:
        reserved: keys that this comparison sets itself, in addition to those that every comparison sets.

    Returns:
        (options, overrides: key → value).
    """
    arguments, words = parser.parse_known_args()
    unknown, pairs = split_overrides(words)
    if unknown:
        try:
            refuse_unknown_keys(unknown, parser)
        except MindPanguError as error:
            parser.error(str(error))
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    overrides = dict(pairs)
    for key in overrides:
        if key in (*_RESERVED_KEYS, *reserved):
            parser.error(f"--{key} is set by this comparison itself; leave it out")
    try:
        load_config(arguments.config, overrides)
    except MindPanguError as error:
        parser.error(str(error))
    if arguments.json and (arguments.json.is_dir() or not arguments.json.parent.is_dir()):
        parser.error(f"--json {arguments.json}: give a file in an existing folder")
    return arguments, overrides
