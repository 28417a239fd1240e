"""Make a smaller model from a trained one: it keeps some layers, channels, heads and neurons with their weights.

  mindpangu tiny inherit --parent output/parent --config child.yaml --neurons learned --out output/inherited
  mindpangu train --config child.yaml --load output/inherited

Both models are dense. The child's configuration sets its size (model.num_layers, hidden_size, num_heads,
ffn_hidden_size); the rest of its model section and its tokenizer must be the parent's. The selection uses batches of
the training split in the child's run folder (mindpangu data prepare). Layers are selected by the loss when windows of
1 to 3 layers are skipped; channels, heads and neurons by the method of --neurons:

  l1, l2     the sum of the absolute weights of a unit, or the root of the sum of their squares
  taylor     the first-order change of the loss when the unit is removed
  learned    a mask that is trained while the weights are frozen
  random     a random selection, as a baseline

--out then holds the child's checkpoint (iteration_…) and

  report.txt    the printed tables: loss without layers, sizes, loss before and after pruning
  report.json   the same, and the kept layers and units
  layers.png    the loss over the position of the skipped window
"""

import argparse
from pathlib import Path

from mindpangu.config import Config
from mindpangu.config.run_folder import RunFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--parent",
        metavar="DIR",
        type=Path,
        required=True,
        help="Inherit from this dense checkpoint, or the newest one of this run folder.",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        required=True,
        help="Write the child's checkpoint and the report to this folder.",
    )
    parser.add_argument(
        "--neurons",
        metavar="METHOD",
        default="learned",
        help="Select channels, heads and neurons by learned, taylor, l2, l1 or random (default: %(default)s).",
    )
    parser.add_argument(
        "--calibration-batches",
        metavar="N",
        type=int,
        default=8,
        help="Measure on this many batches of training text (default: %(default)s).",
    )
    for end in ("first", "last"):
        parser.add_argument(
            f"--keep-{end}",
            metavar="N",
            type=int,
            default=2,
            help=f"Always keep this many of the {end} layers (default: %(default)s).",
        )
    parser.add_argument(
        "--mask-steps",
        metavar="N",
        type=int,
        default=200,
        help="Train the learned mask for this many steps (default: %(default)s).",
    )


def run(options: argparse.Namespace, config: Config) -> None:
    from mindpangu.lifecycle.output import locked_output

    with locked_output(options.out):
        _run(options, config)


def _run(options: argparse.Namespace, config: Config) -> None:
    from tqdm import tqdm

    from mindpangu.checkpoint import CheckpointReader, SavedState
    from mindpangu.data import TokenShards
    from mindpangu.lifecycle.blueprint import Blueprint
    from mindpangu.lifecycle.build import build
    from mindpangu.lifecycle.prune import prune, require_child
    from mindpangu.tiny.inheritance.inheriting import Selection, inherit
    from mindpangu.tiny.inheritance.learned_mask import MaskTraining
    from mindpangu.tiny.inheritance.report import format_table, refuse_other_files, write_report
    from mindpangu.train.run import set_device

    refuse_other_files(options.out)
    mask = MaskTraining(steps=options.mask_steps, seed=config.training.seed)
    selection = Selection(options.neurons, options.calibration_batches, options.keep_first, options.keep_last, mask)
    reader = CheckpointReader(options.parent)
    parent = Blueprint.from_checkpoint(reader)
    require_child(parent, config)
    shards = TokenShards.open(RunFolder.from_config(config).data, verify=True)
    if SavedState.read(reader).digests.get("data (token shards)") != shards.digest:
        print("inherit: the parent was not trained on these token shards; it may have seen the held-out text")
    set_device(config)
    inheritance = inherit(
        reader, config, shards, selection, lambda items, label: tqdm(items, desc=label, unit="step", disable=None)
    )
    made_by = {"verb": "tiny inherit", "parent": str(options.parent), "neurons": options.neurons}
    # first, because nothing is written to a folder that has a checkpoint
    write_report(options.out, inheritance, parent.config, config, selection)
    folder = build(prune(parent, config, inheritance.kept), options.out, made_by)
    print(format_table(inheritance, parent.config, config, selection))
    print(f"inherit: {len(inheritance.kept.layers)} of {parent.config.model.num_layers} layers → {folder}")
