"""Scale the learning rate to a batch size, or find the best rates with a sweep.

  mindpangu tiny batch-size --rule --batches 2M,4M --base-batch 1M --base-rate 1e-4
  mindpangu tiny batch-size --config recipes/cpu_smoke.yaml --batches 4,8,16 --rates 0.5e-3,1e-3,2e-3 --tokens 200K --out output/batch_size

--rule prints lr = (batch / base batch)^r · base rate, with r = 0.5 from the tiny-model paper, and trains nothing.

Without --rule, every pair of --batches (samples per step) and --rates is trained on --tokens tokens, each in its own run
folder and process, and r is fitted to the best rates. To resume a stopped sweep, run the same command again. --out then
holds sweep.json, results.json, results.png, and one run folder per pair.
"""  # noqa: E501 - the command is kept on one line for copying

import argparse
from pathlib import Path

from mindpangu.cli.option_types import refuse_unused
from mindpangu.config import Config
from mindpangu.errors import ConfigError
from mindpangu.locks import locked
from mindpangu.user_input import parse_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batches", metavar="N,N…", required=True, help="Batch sizes in samples per step; with --rule, in any unit."
    )
    rule = parser.add_argument_group("the rule")
    rule.add_argument("--rule", action="store_true", help="Print the learning rate of each batch size.")
    rule.add_argument("--base-batch", metavar="N", help="Batch size with a known learning rate (default: 1M).")
    rule.add_argument("--base-rate", metavar="X", type=float, help="Its learning rate (default: 0.0001).")
    rule.add_argument("--exponent", metavar="X", type=float, help="The exponent r (default: 0.5).")
    sweep = parser.add_argument_group("the sweep")
    sweep.add_argument("--rates", metavar="X,X…", help="Peak learning rates to try.")
    sweep.add_argument("--tokens", metavar="N", help="Train each pair on this many tokens, e.g. 200000 or 2M.")
    sweep.add_argument("--processes", metavar="N", type=int, help="Train this many pairs at once (default: 1).")
    sweep.add_argument("--out", metavar="DIR", type=Path, help="Write the results to this folder.")
    sweep.add_argument(
        "--keep-checkpoints", action="store_true", help="Keep the checkpoints after the pairs have been measured."
    )


def run(options: argparse.Namespace, config: Config) -> int:
    from mindpangu.model.parameter_count import from_words
    from mindpangu.tiny.batch_size import EXPONENT, scaled_learning_rate, sweep

    batches = [from_words("--batches", word) for word in options.batches.split(",")]
    if options.rule:
        refuse_unused(options, "the rule", "rates", "tokens", "out", "processes", "keep_checkpoints")
        base = from_words("--base-batch", "1M" if options.base_batch is None else options.base_batch)
        base_rate = 1e-4 if options.base_rate is None else options.base_rate
        exponent = EXPONENT if options.exponent is None else options.exponent
        for batch in batches:
            rate = scaled_learning_rate(batch, base, base_rate, exponent)
            print(f"batch {batch:,}: learning rate {rate:.3g}")
        return 0
    refuse_unused(options, "a sweep", "base_batch", "base_rate", "exponent")
    missing = [name for name in ("rates", "tokens", "out") if getattr(options, name) is None]
    if missing:
        raise ConfigError(f"a sweep needs --{missing[0]}; or give --rule to print the learning rates of the rule")
    with locked(options.out):
        succeeded = sweep(
            config,
            batches,
            _rates(options.rates),
            from_words("--tokens", options.tokens),
            options.out,
            1 if options.processes is None else options.processes,
            options.keep_checkpoints,
        )
    return 0 if succeeded else 1


def _rates(text: str) -> list[float]:
    try:
        rates = [parse_number(word.strip()) for word in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(rate > 0 for rate in rates):
        raise ConfigError(f"--rates is {text!r}; give learning rates above 0, e.g. 0.5e-3,1e-3,2e-3")
    return rates
