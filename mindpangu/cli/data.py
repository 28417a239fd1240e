"""Turn the corpus into token shards.

prepare    writes output/<run>/data/; does nothing if corpus, tokenizer and settings have not changed
"""

import argparse

from mindpangu.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("prepare",))


def run(options: argparse.Namespace, config: Config) -> None:
    from mindpangu.data.prepare import prepare_shards

    prepare_shards(config)
