"""Turn the corpus into token shards.

prepare   writes output/<run>/data/; does nothing if corpus, tokenizer and settings are unchanged
"""

import argparse

from mindpangu.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("prepare",), help="Action; see above.")


def run(options: argparse.Namespace, config: Config) -> None:
    from mindpangu.data.prepare import prepare_shards

    prepare_shards(config)
