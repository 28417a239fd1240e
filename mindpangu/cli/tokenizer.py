"""Train the run's sentencepiece tokenizer, or take the one that data.tokenizer names.

train      writes output/<run>/tokenizer/; skipped when the corpus and the settings have not changed
"""

import argparse

from mindpangu.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("train",))


def run(options: argparse.Namespace, config: Config) -> None:
    from mindpangu.data.prepare import prepare_tokenizer

    prepare_tokenizer(config)
