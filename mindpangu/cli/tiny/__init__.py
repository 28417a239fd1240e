"""Run PanGu-π's recipe for tiny models: tokenizer, architecture, inherited parameters, training rounds, batch size.

`mindpangu tiny ACTION --help` shows the options of an action; docs/tiny.md explains the recipe.
"""

import argparse
from pathlib import Path

from mindpangu.cli.option_types import summary_of
from mindpangu.cli.tiny import architecture, batch_size, inherit, rounds, tokenizer
from mindpangu.config import Config

ACTIONS = (tokenizer, architecture, inherit, rounds, batch_size)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for action in ACTIONS:
        subparser = actions.add_parser(
            action.__name__.rsplit(".", 1)[1].replace("_", "-"),
            help=summary_of(action),
            description=action.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=parser.epilog,
            allow_abbrev=False,
        )
        # --config is accepted before and after the action; SUPPRESS keeps a value given before it
        subparser.add_argument(
            "--config",
            metavar="FILE",
            type=Path,
            default=argparse.SUPPRESS,
            help="Read the configuration from this YAML file; absent keys take their defaults.",
        )
        action.add_arguments(subparser)
        subparser.set_defaults(action=action)


def settings(options: argparse.Namespace) -> dict[str, str]:
    """Returns the configuration keys that the action sets itself."""
    return options.action.settings(options) if hasattr(options.action, "settings") else {}


def run(options: argparse.Namespace, config: Config) -> int | None:
    return options.action.run(options, config)
