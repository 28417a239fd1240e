"""What the command lines of the comparisons have in common; all other words are overrides of the recipe."""

import argparse
from collections.abc import Collection
from pathlib import Path

from comparison.intervals import MOST_SEEDS
from mindpangu.cli.main import split_overrides
from mindpangu.config import load_config
from mindpangu.errors import MindPanguError

_OWN = ("training.seed", "training.run_name", "checkpoint.save_steps", "checkpoint.keep_last")


def comparison_parser(description: str, config: str, default: str, fewest_seeds: int = 1) -> argparse.ArgumentParser:
    """Options --config, --seeds (None if not given) and --json; read it with `read_arguments`.

    Args:
        config: recipe if none is given. default: words on how many seeds there are if they are not given.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=config, help="recipe; default: %(default)s")
    add_seeds(parser, default, fewest_seeds)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser


def add_seeds(parser: argparse.ArgumentParser, default: str, fewest: int = 1) -> None:
    """Option --seeds, up to as many as an interval can be given for. Arguments as for `comparison_parser`."""
    choices, metavar = range(fewest, MOST_SEEDS + 1), f"{fewest}…{MOST_SEEDS}"
    parser.add_argument("--seeds", type=int, choices=choices, metavar=metavar, help=f"default: {default}")


def read_arguments(
    parser: argparse.ArgumentParser, own: Collection[str] = ()
) -> tuple[argparse.Namespace, dict[str, str]]:
    """(options, key → value of the recipe) of the command line; ends the program for what is neither, for a recipe that
    cannot be, and for a --json that could not be written after hours.

    Args:
        own: keys that this comparison sets, beside those that all of them set; they are refused.
    """
    arguments, words = parser.parse_known_args()
    unknown, pairs = split_overrides(words)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    overrides = dict(pairs)
    for key in overrides:
        if key in (*_OWN, *own):
            parser.error(f"--{key} is what this comparison sets itself; leave it out")
    try:
        load_config(arguments.config, overrides)
    except MindPanguError as error:
        parser.error(str(error))
    if arguments.json and (arguments.json.is_dir() or not arguments.json.parent.is_dir()):
        parser.error(f"--json {arguments.json}: name a file in a folder that is there")
    return arguments, overrides
