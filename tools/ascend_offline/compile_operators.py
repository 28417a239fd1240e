"""Compiles an RRE layer of 8 ranks for Ascend, with the AscendC operators in it, on a machine without NPU and CANN.

    python tools/ascend_offline/compile_operators.py [--chip ascend910] [--download]

MindSpore loads its Ascend plugin over stubs of CANN's libraries, finds the operators in a package that contains only
their definitions, compiles the call of each against ACL's headers, and infers shapes and gradients. Without those
headers (CANN has them, and so does torch-npu's wheel, which --download fetches) the graph has the composed forms of our
operators. Nothing is executed; whether the same graph runs on a card is unverified on hardware. Without a device
MindSpore knows no chip, so GroupedMatmul is compiled even for ascend910, which on a card gets the composed form.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from ascend_offline import acl_headers, cann_stub
from ascend_offline.simulation import join_simulated_ranks, prepare, run_inside
from ascend_ops import emulator

TOKENS = 24
HIDDEN = 32
INNER = 64
EXPERTS = 8
VOCABULARY = 40
RANKS = 8
CAPACITY = 64


def main() -> None:
    """Builds the stubs of CANN, compiles in a child process that uses them, and prints the operators of the graph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--chip",
        choices=emulator.CHIPS,
        default="ascend910",
        help="chip whose operator definitions are used (%(default)s)",
    )
    parser.add_argument("--download", action="store_true", help=f"fetch ACL's headers from {acl_headers.WHEEL}")
    parser.add_argument(
        "--cache", type=Path, default=Path("output/ascend_offline"), help="folder for the downloaded headers"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(compile_graph()))
        return
    headers = acl_headers.find(arguments.cache, arguments.download)
    with tempfile.TemporaryDirectory() as folder:
        try:
            environment = prepare(Path(folder), RANKS, arguments.chip, headers)
            result = json.loads(run_inside([str(Path(__file__).resolve()), "--inside"], environment, Path(folder)))
        except cann_stub.StubError as error:
            sys.exit(f"compile_operators: {error}")
        except RuntimeError as error:
            sys.exit(f"compile_operators: the graph does not compile:\n{error}")
    if headers is None:
        print(f"ACL's headers were not found (--download: {acl_headers.WHEEL}), so the composed forms were compiled")
    counts = ", ".join(f"{name} × {count}" for name, count in result["custom"].items())
    print(f"operators: {result['operators']}")
    print(f"in the graph of {result['target']}: {counts or 'no custom operator'}")


def compile_graph() -> dict[str, Any]:
    """Compiles an RRE layer and its gradient for one rank, and counts the custom operators in the graph."""
    import mindspore as ms
    import numpy as np
    from mindspore import Tensor, nn, ops

    ms.set_context(mode=ms.GRAPH_MODE)
    join_simulated_ranks()
    from ascend_ops import backends
    from ascend_ops.grouped_all_to_all import Group, dispatch_all_to_all, first_order, grouped_all_to_all
    from ascend_ops.grouped_all_to_all.ascend import AllToAll
    from ascend_ops.grouped_ffn import grouped_ffn
    from ascend_ops.rre_combine import rre_combine
    from ascend_ops.rre_dispatch import rre_dispatch
    from ascend_ops.rre_regroup import rre_regroup

    class Layer(nn.Cell):
        """Dispatches rows to the ranks of their experts, computes the experts, and returns the rows."""

        def __init__(self, group: Group):
            super().__init__()
            self.group = group

        def construct(self, x_TH, token_ids_T, slot_ids_T, table_DV, sent_R, received_R, counts_RE, *slabs):
            ids = (token_ids_T, slot_ids_T, table_DV)
            counts = (sent_R, received_R)
            rows_CH, _, positions_T, _, order = dispatch_all_to_all(
                x_TH, *ids, EXPERTS, *counts, CAPACITY, self.group, first_order()
            )
            rows_CH = grouped_ffn(rre_regroup(rows_CH, counts_RE), ops.cast(counts_RE.sum(0), ms.int32), slabs)
            rows_CH = rre_regroup(rows_CH, ops.transpose(counts_RE, (1, 0)))
            rows_TH, _ = grouped_all_to_all(rows_CH, received_R, sent_R, TOKENS, self.group, order)
            rows_TH, _, positions_T, _ = rre_dispatch(rre_combine(rows_TH, positions_T, x_TH), *ids, EXPERTS)
            return rre_combine(rows_TH, positions_T, x_TH)

    class Gradient(nn.Cell):
        def __init__(self, layer: nn.Cell):
            super().__init__()
            self.layer = layer
            self.gradient = ops.GradOperation(get_all=True)

        def construct(self, *inputs):
            return self.layer(*inputs), self.gradient(self.layer)(*inputs)

    local_experts = EXPERTS // RANKS
    ids_T = np.zeros(TOKENS, np.int32)
    counts_R = np.full(RANKS, TOKENS // RANKS, np.int32)
    slab_shapes = (
        (local_experts, HIDDEN, INNER),
        (local_experts, INNER),
        (local_experts, INNER, HIDDEN),
        (local_experts, HIDDEN),
    )
    arrays = (
        np.ones((TOKENS, HIDDEN), np.float16),
        ids_T,
        ids_T,
        np.zeros((1, VOCABULARY), np.int32),
        counts_R,
        counts_R,
        counts_R[:, None],
        *(np.ones(shape, np.float16) for shape in slab_shapes),
    )
    ms.set_context(save_graphs=1, save_graphs_path="graphs")
    world = Group("hccl_world_group", 0, RANKS, -1, AllToAll("hccl_world_group"))
    Gradient(Layer(world)).compile(*map(Tensor, arrays))

    text = max(Path("graphs").rglob("*validate*.ir"), key=lambda path: path.stat().st_mtime).read_text()
    names = [emulator.cann_name(kernel) for kernel in emulator.KERNELS]
    custom = {name: text.count(f'func_name: "aclnn{name}"') for name in names}
    for name in ("GroupedMatmul", "AlltoAllV"):
        custom[name] = text.count(f"{name}(")
    return {
        "operators": backends.describe(),
        "target": ms.get_context("device_target"),
        "custom": {name: count for name, count in custom.items() if count},
    }


if __name__ == "__main__":
    main()
