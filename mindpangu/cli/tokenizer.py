"""Train the run's sentencepiece tokenizer, or extend a published one.

train    writes output/<run>/tokenizer/, from the model in data.tokenizer if that is set; does nothing if corpus and
         settings are unchanged
extend   adds padding, the control tokens of the run's domains and 64 reserved ones to a model that lacks them

  mindpangu tokenizer extend --model published.model --out mine.model
"""

import argparse
from pathlib import Path

from mindpangu.cli.option_types import refuse_unused
from mindpangu.config import Config
from mindpangu.errors import ConfigError, TokenizerError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("train", "extend"), help="Action; see above.")
    parser.add_argument("--model", metavar="FILE", type=Path, help="With extend: extend this sentencepiece model.")
    parser.add_argument("--out", metavar="FILE", type=Path, help="With extend: write the extended model to this file.")


def run(options: argparse.Namespace, config: Config) -> None:
    if options.action == "train":
        refuse_unused(options, "tokenizer train", "model", "out")
        from mindpangu.data.prepare import prepare_tokenizer

        prepare_tokenizer(config)
        return
    if options.model is None or options.out is None:
        raise ConfigError("tokenizer extend needs --model FILE and --out FILE")
    from mindpangu.domains import build_domains, control_tokens_of
    from mindpangu.files import write_bytes_atomically
    from mindpangu.tokenizer.extend import describe_losses, extend
    from mindpangu.tokenizer.sentencepiece_tokenizer import read_model

    try:
        model_bytes = read_model(options.model, follow_link=True)
    except TokenizerError as error:
        raise TokenizerError(f"{error}; check --model") from None
    _refuse_to_replace(options.out, options.model)
    tokenizer = extend(model_bytes, control_tokens_of(build_domains(config)), str(options.model))
    write_bytes_atomically(options.out, tokenizer.model_bytes)
    if losses := describe_losses(tokenizer.model_bytes):
        print(f"tokenizer: this model does not preserve all text: {'; '.join(losses)}")
    print(f"tokenizer: {tokenizer.vocab_size:,} pieces → {options.out}")


def _refuse_to_replace(out: Path, model: Path) -> None:
    """Refuses to write over the given model, or over a file that is no extended model.

    Raises:
        ConfigError: `out` is such a file.
    """
    from mindpangu.tokenizer import Tokenizer

    if not out.is_file():
        return
    if out.samefile(model):
        raise ConfigError(f"--out {out} is the given model, which would be replaced; choose another --out")
    try:
        Tokenizer.load(out, follow_link=True)
    except TokenizerError:
        raise ConfigError(f"--out {out} would be replaced, but is no extended tokenizer; move or rename it") from None
