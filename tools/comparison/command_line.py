"""What the command lines of the comparisons have in common; all other words are overrides of the recipe."""

import argparse
from pathlib import Path

from comparison.intervals import MOST_SEEDS


def comparison_parser(description: str, config: str, default: str, fewest_seeds: int = 1) -> argparse.ArgumentParser:
    """Options --config, --seeds (None if not given) and --json; read it with parse_known_args.

    Args:
        config: recipe if none is given. default: words on how many seeds there are if they are not given.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=config, help="recipe; default: %(default)s")
    parser.add_argument(
        "--seeds",
        type=int,
        choices=range(fewest_seeds, MOST_SEEDS + 1),
        metavar=f"{fewest_seeds}…{MOST_SEEDS}",
        help=f"default: {default}",
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser
