"""Make a smaller model out of a trained one: some of its layers, channels, heads and neurons, with their weights.

  mindpangu tiny inherit --parent output/parent --config child.yaml --neurons learned --out output/inherited
  mindpangu train --config child.yaml --load output/inherited

Both models are dense. The child's configuration says how much stays (model.num_layers, hidden_size, num_heads,
ffn_hidden_size); the rest of its model section and its tokenizer are the parent's. What stays is chosen on batches of
the training split of its run folder (mindpangu data prepare): layers by the loss without windows of 1 to 3 of them,
channels, heads and neurons by --neurons:

  l1, l2     the sum, or the root of the sum of squares, of a unit's weights
  taylor     the first-order change of the loss without the unit
  learned    a mask that is trained while the weights stay as they are
  random     rng, to compare with

--out then holds the child's checkpoint (iteration_…) and

  report.txt    the printed tables: loss without layers, sizes, loss before and after
  report.json   the same, and which layers and units stay
  layers.png    the loss over the position of the window
"""

import argparse
from pathlib import Path

from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parent", metavar="DIR", type=Path, required=True, help="checkpoint or run of a dense model")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="where the child's checkpoint goes")
    parser.add_argument(
        "--neurons", metavar="METHOD", default="learned", help="learned, taylor, l2, l1 or random; default: %(default)s"
    )
    parser.add_argument(
        "--calibration-batches", metavar="N", type=int, default=8, help="of training text; default: %(default)s"
    )
    for end in ("first", "last"):
        parser.add_argument(
            f"--keep-{end}", metavar="N", type=int, default=2, help=f"the {end} layers stay; default: %(default)s"
        )
    parser.add_argument(
        "--mask-steps", metavar="N", type=int, default=200, help="steps of the learned mask; default: %(default)s"
    )


def run(options: argparse.Namespace, config: Config) -> None:
    from tqdm import tqdm

    from mindpangu.checkpoint import CheckpointReader
    from mindpangu.data import TokenShards
    from mindpangu.lifecycle.blueprint import Blueprint
    from mindpangu.lifecycle.build import build
    from mindpangu.lifecycle.output import require_free
    from mindpangu.lifecycle.prune import prune, require_child
    from mindpangu.tiny.inheritance.inheriting import Selection, inherit
    from mindpangu.tiny.inheritance.learned_mask import MaskTraining
    from mindpangu.tiny.inheritance.report import format_table, write_report
    from mindpangu.train.run import set_device

    mask = MaskTraining(steps=options.mask_steps, seed=config.training.seed)
    selection = Selection(options.neurons, options.calibration_batches, options.keep_first, options.keep_last, mask)
    require_free(options.out)
    reader = CheckpointReader(options.parent)
    parent = Blueprint.from_checkpoint(reader)
    require_child(parent, config)
    shards = TokenShards.open(RunFolder.from_config(config).data, verify=True)
    if reader.json("state.json")["digests"].get("data (token shards)") != shards.digest:
        print(
            "inherit: these token shards are not the ones of the parent's training; it may have seen the held-out text"
        )
    set_device(config)
    found = inherit(
        reader, config, shards, selection, lambda items, name: tqdm(items, desc=name, unit="step", disable=None)
    )
    made_by = {"verb": "tiny inherit", "parent": str(options.parent), "neurons": options.neurons}
    folder = build(prune(parent, config, found.kept), options.out, made_by)
    write_report(options.out, found, parent.config, config, selection)
    print(format_table(found, parent.config, config, selection))
    print(f"inherit: {len(found.kept.layers)} of {parent.config.model.num_layers} layers → {folder}")
