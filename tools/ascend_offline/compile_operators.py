"""Compiles an Ascend graph with the AscendC operators in it, on a machine without NPU and CANN.

    python tools/ascend_offline/compile_operators.py [--chip ascend910] [--download]

MindSpore loads its Ascend plugin over stubs of CANN's libraries, looks the operators up in a package that holds their
definitions alone, compiles the call of each against ACL's headers, and infers shapes and gradients. Without those
headers (CANN has them, and torch-npu's wheel, which --download fetches) the graph is compiled with the composed forms.
Nothing is executed; that the same graph runs on a card is unverified on hardware.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from ascend_offline import acl_headers, cann_stub, operator_package
from ascend_ops import emulator

TOKENS, HIDDEN, EXPERTS, VOCABULARY = 24, 32, 4, 40


def main() -> None:
    """Prepares what stands in for CANN, and compiles in a process that finds it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--chip",
        choices=emulator.CHIPS,
        default="ascend910",
        help="whose definitions of the operators are looked up (%(default)s)",
    )
    parser.add_argument("--download", action="store_true", help=f"fetch ACL's headers from {acl_headers.WHEEL}")
    parser.add_argument("--cache", type=Path, default=Path("output/ascend_offline"), help="where headers stay")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(compile_graph()))
        return
    headers = acl_headers.find(arguments.cache, arguments.download)
    with tempfile.TemporaryDirectory() as folder:
        try:
            environment = prepare(Path(folder), arguments.chip, headers)
        except cann_stub.StubError as error:
            sys.exit(f"compile_operators: {error}")
        done = subprocess.run(
            [sys.executable, __file__, "--inside"], env=environment, cwd=folder, capture_output=True, text=True
        )
    if done.returncode:
        sys.exit(f"compile_operators: the graph does not compile:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    if headers is None:
        print(f"no headers of ACL ({acl_headers.WHEEL} has them: --download), so the composed forms were compiled")
    counts = ", ".join(f"{name} × {count}" for name, count in found["custom"].items())
    print(f"operators: {found['operators']}")
    print(f"in the graph of {found['target']}: {counts or 'no custom operator'}")


def prepare(folder: Path, chip: str, headers: Path | None) -> dict[str, str]:
    """Stubs, an operator package and headers in a folder; the environment in which MindSpore finds them."""
    libraries = folder / "stub"
    cann_stub.build(libraries)
    toolkit = folder / "toolkit"
    (toolkit / "opp" / "built-in" / "op_impl" / "ai_core" / "tbe" / "config").mkdir(parents=True)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(libraries),
        "MS_SIMULATION_LEVEL": "0",
        "RANK_SIZE": "1",
        "RANK_ID": "0",
        "GLOG_v": "3",
        "ASCEND_OPP_PATH": str(toolkit / "opp"),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    environment.pop("MINDPANGU_OPS", None)
    if headers is None:
        environment["MINDPANGU_OPS"] = "composed"
    else:
        (toolkit / "include").symlink_to(headers.resolve())
        operator_package.write(folder / "package", chip)
        environment["ASCEND_CUSTOM_OPP_PATH"] = str(folder / "package")
    return environment


def compile_graph() -> dict:
    """What is in the graph of dispatch, combine and regroup with their gradients."""
    import mindspore as ms
    import numpy as np
    from mindspore import Tensor, nn, ops

    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("Ascend")
    from ascend_ops import backends
    from ascend_ops.rre_combine import rre_combine
    from ascend_ops.rre_dispatch import rre_dispatch
    from ascend_ops.rre_regroup import rre_regroup

    class Layer(nn.Cell):
        def construct(self, x_TH, token_ids_T, slot_ids_T, table_DV):
            rows_TH, counts_G, positions_T, _ = rre_dispatch(x_TH, token_ids_T, slot_ids_T, table_DV, EXPERTS)
            regrouped_TH = rre_regroup(rows_TH, ops.expand_dims(counts_G, 0))
            return rre_combine(regrouped_TH, positions_T, x_TH)

    class Gradient(nn.Cell):
        def __init__(self, layer):
            super().__init__()
            self.layer, self.gradient = layer, ops.GradOperation()

        def construct(self, *inputs):
            return self.layer(*inputs), self.gradient(self.layer)(*inputs)

    ids_T = np.zeros(TOKENS, np.int32)
    arrays = np.ones((TOKENS, HIDDEN), np.float16), ids_T, ids_T, np.zeros((1, VOCABULARY), np.int32)
    ms.set_context(save_graphs=1, save_graphs_path="graphs")
    Gradient(Layer()).compile(*map(Tensor, arrays))
    text = max(Path("graphs").rglob("*validate*.ir"), key=lambda path: path.stat().st_mtime).read_text()
    names = ("RreDispatch", "RreGatherRows", "RreRegroup", "RreRegroupBack", "RreCombine", "RreScatterRows")
    custom = {name: text.count(f'func_name: "aclnn{name}"') for name in names}
    return {
        "operators": backends.describe(),
        "target": ms.get_context("device_target"),
        "custom": {name: count for name, count in custom.items() if count},
    }


if __name__ == "__main__":
    main()
