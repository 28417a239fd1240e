"""Search for depth, width and expansion at a fixed number of parameters.

  mindpangu tiny architecture --config recipes/cpu_smoke.yaml --model.rre_layers 0 --budget 2M --points 6 --out output/architecture

Draws a random sample of the architectures (points) with this many parameters and trains each one briefly, in its own
run folder and process. Measures held-out loss, training speed and decoding speed, ranks the points, and correlates the
measures with depth, width and expansion. All other settings come from the configuration. To resume a stopped search or
retry failed points, run the same command again. --list only prints the points, and needs no --out.

--out then holds points.json, results.json, results.png, and one run folder per point.
"""  # noqa: E501 - the command is kept on one line for copying

import argparse
from pathlib import Path

from mindpangu.config import Config
from mindpangu.errors import ConfigError
from mindpangu.locks import locked


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--budget", metavar="N", required=True, help="Number of parameters of each point, e.g. 350K, 2M or 1.5B."
    )
    parser.add_argument(
        "--points", metavar="N", type=int, default=12, help="Train this many points (default: %(default)s)."
    )
    parser.add_argument(
        "--steps", metavar="N", type=int, help="Train each point for this many steps (default: training.steps)."
    )
    parser.add_argument(
        "--processes", metavar="N", type=int, default=1, help="Train this many points at once (default: %(default)s)."
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="Write the results to this folder.")
    parser.add_argument(
        "--depth", metavar="A:B", default="2:8", help="Range of the number of layers (default: %(default)s)."
    )
    parser.add_argument(
        "--width", metavar="A:B", default="64:256", help="Range of the model width (default: %(default)s)."
    )
    parser.add_argument(
        "--expansion", metavar="A:B", default="1:4", help="Range of FFN width / model width (default: %(default)s)."
    )
    parser.add_argument(
        "--head-size",
        metavar="N",
        type=int,
        help="Width of an attention head; the model width is a multiple of it (default: model.hidden_size / "
        "model.num_heads).",
    )
    parser.add_argument(
        "--tolerance",
        metavar="X",
        type=float,
        default=0.02,
        help="Allow points to miss the budget by this share of it (default: %(default)s).",
    )
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="Seed of the random sample (default: %(default)s)."
    )
    parser.add_argument("--list", action="store_true", help="Print the points without training or writing anything.")
    parser.add_argument(
        "--keep-checkpoints", action="store_true", help="Keep the checkpoints after the points have been measured."
    )


def settings(options: argparse.Namespace) -> dict[str, str]:
    return {} if options.steps is None else {"training.steps": str(options.steps)}


def run(options: argparse.Namespace, config: Config) -> int:
    from mindpangu.model.parameter_count import from_words
    from mindpangu.tiny.architecture.points import Range, Space
    from mindpangu.tiny.architecture.search import draw_points, format_points, load_or_draw_points, search

    head_size = options.head_size
    if head_size is None:
        head_size = config.model.hidden_size // config.model.num_heads
    space = Space(
        from_words("--budget", options.budget),
        depth=Range.parse("--depth", options.depth),
        width=Range.parse("--width", options.width),
        expansion=Range.parse("--expansion", options.expansion),
        head_size=head_size,
        tolerance=options.tolerance,
    )
    if options.list:
        print(format_points(draw_points(config, space, options.points, options.seed)))
        return 0
    if options.out is None:
        raise ConfigError("a search needs --out; or give --list to print the points")
    with locked(options.out):
        sample = load_or_draw_points(config, space, options.points, options.seed, options.out)
        print(format_points(sample.points))
        succeeded = search(config, sample, options.out, options.processes, options.keep_checkpoints)
    return 0 if succeeded else 1
