"""The recipe of PanGu-π for tiny models: a compact tokenizer, a search for the architecture, inherited parameters,
several rounds.

tokenizer      keeps the most frequent pieces of a tokenizer, and re-maps a trained checkpoint to them
architecture   searches for depth, width and expansion at a fixed number of parameters
inherit        makes a smaller model out of a trained one, with the weights of its most important parts
rounds         trains in several rounds, each further one on batches that the model finds hard
batch-size     says which learning rate goes with a batch size, or finds it in a sweep

`mindpangu tiny ACTION --help` says what an action takes; docs/tiny.md tells the story.
"""

import argparse
from pathlib import Path

from mindpangu.cli.tiny import architecture, batch_size, inherit, rounds, tokenizer
from mindpangu.config import Config

ACTIONS = (tokenizer, architecture, inherit, rounds, batch_size)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for action in ACTIONS:
        subparser = actions.add_parser(
            action.__name__.rsplit(".", 1)[1].replace("_", "-"),
            help=action.__doc__.strip().splitlines()[0],
            description=action.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=parser.epilog,
            allow_abbrev=False,
        )
        # a verb takes --config before its action; here behind it as well, without undoing what stood before
        subparser.add_argument("--config", metavar="FILE", type=Path, default=argparse.SUPPRESS, help="as above")
        action.add_arguments(subparser)
        subparser.set_defaults(action=action)


def settings(options: argparse.Namespace) -> dict[str, str]:
    """Keys that an action sets itself."""
    return options.action.settings(options) if hasattr(options.action, "settings") else {}


def run(options: argparse.Namespace, config: Config) -> int | None:
    return options.action.run(options, config)
