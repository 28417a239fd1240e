"""Search for depth, width and expansion at a fixed number of parameters.

  mindpangu tiny architecture --config recipes/cpu_smoke.yaml --model.rre_layers 0 --budget 2M --points 6 --out output/architecture

A random sample of the architectures with this many parameters is trained shortly, each point in a run folder and a
process of its own. Held-out loss and the speeds of training and decoding are measured and ranked, and correlated with
depth, width and expansion. Everything else is as the configuration says. The same command goes on where it was
stopped, and tries points again that failed. --list only prints the points, and needs no --out.

--out then holds points.json, results.json, results.png, and a run folder a point.
"""  # noqa: E501 - a command that can be copied

import argparse
from pathlib import Path

from mindpangu.config import Config
from mindpangu.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--budget", metavar="N", required=True, help="parameters of a point, as 350K, 2M or 1.5B")
    parser.add_argument("--points", metavar="N", type=int, default=12, help="size of the sample; default: %(default)s")
    parser.add_argument("--steps", metavar="N", type=int, help="of each training; default: training.steps")
    parser.add_argument("--processes", metavar="N", type=int, default=1, help="trainings at once; default: %(default)s")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where everything goes")
    parser.add_argument("--depth", metavar="A:B", default="2:8", help="layers; default: %(default)s")
    parser.add_argument("--width", metavar="A:B", default="64:256", help="of the model; default: %(default)s")
    parser.add_argument("--expansion", metavar="A:B", default="1:4", help="FFN width / width; default: %(default)s")
    parser.add_argument(
        "--head-size",
        metavar="N",
        type=int,
        help="the width is a multiple of it; default: model.hidden_size / model.num_heads",
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.02, help="how far from the budget, as a share; default: %(default)s"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the sample; default: %(default)s")
    parser.add_argument("--list", action="store_true", help="print the points; train and write nothing")
    parser.add_argument("--keep-checkpoints", action="store_true", help="of the points; else removed when measured")


def settings(options: argparse.Namespace) -> dict[str, str]:
    return {} if options.steps is None else {"training.steps": str(options.steps)}


def run(options: argparse.Namespace, config: Config) -> int:
    from mindpangu.model.parameter_count import from_words
    from mindpangu.tiny.architecture.points import Range, Space
    from mindpangu.tiny.architecture.search import choose_points, draw_points, format_points, search

    head_size = options.head_size
    space = Space(
        from_words("--budget", options.budget),
        *(Range.parse(f"--{name}", getattr(options, name)) for name in ("depth", "width", "expansion")),
        head_size=config.model.hidden_size // config.model.num_heads if head_size is None else head_size,
        tolerance=options.tolerance,
    )
    if options.list:
        print(format_points(draw_points(config, space, options.points, options.seed)))
        return 0
    if options.out is None:
        raise ConfigError("a search needs --out; or give --list to print the points")
    sample = choose_points(config, space, options.points, options.seed, options.out)
    print(format_points(sample.points))
    return 0 if search(config, sample, options.out, options.processes, options.keep_checkpoints) else 1
