"""Build the routing table, or show how it loads the experts.

build   writes output/<run>/routing/; does nothing if data and settings are unchanged
stats   prints the load of every expert group and draws output/<run>/routing.png
"""

import argparse

from mindpangu.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("build", "stats"), help="Action; see above.")


def run(options: argparse.Namespace, config: Config) -> None:
    from mindpangu.data.prepare import prepare_routing, show_routing

    if options.action == "build":
        prepare_routing(config)
    else:
        show_routing(config)
