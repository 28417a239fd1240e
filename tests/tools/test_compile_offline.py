"""tools/compile_offline.py: the graphs of a rank, compiled without an NPU, agree with the arithmetic of the mesh."""

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT / "tools"))

from ascend_offline import cann_stub, graph  # noqa: E402
from compile_offline import print_report, with_ranks  # noqa: E402

from mindpangu.config import load_config  # noqa: E402
from mindpangu.parallel.mesh import Mesh  # noqa: E402
from mindpangu.planner.budget import Budget  # noqa: E402

# small models, so that a test takes seconds; the meshes are the recipes' own
SMALL = {
    "model.num_layers": 5,
    "model.rre_layers": 2,
    "model.hidden_size": 512,
    "model.ffn_hidden_size": 1024,
    "model.num_heads": 8,
    "model.seq_length": 64,
    "model.vocab_size": 1024,
    "training.local_batch_size": 2,
}

IR = """
# Total params: 3
%para1_x: <Tensor[Float16], (4, 8)> : [4, 8]
%para2_ids: <Tensor[Int32], (2)> : [2]
%para3_w: <Ref[Tensor[Float32]], (8, 8), ref_key=block.w, is_parameter>  :  has_default

Node counting information:
subgraph @main() {
  %0(CNode_1) = Load(%para3_w, U) cnode_attrs: {checkpoint: Bool(1)}
      : (<Ref[Tensor[Float32]], (8, 8), ref_key=block.w>) -> (<Tensor[Float32], (8, 8)>)
  %1(CNode_2) = PrimFunc_Cast(%0, I64(42)) {instance name: cast} primitive_attrs: {}
      : (<Tensor[Float32], (8, 8)>) -> (<Tensor[Float16], (8, 8)>)
  %2(CNode_3) = PrimFunc_MatMul(%para1_x, %1) cnode_attrs: {}
      : (<Tensor[Float16], (4, 8)>, <Tensor[Float16], (8, 8)>) -> (<Tensor[Float16], (4, 8)>)
  %3(CNode_4) = AllReduce(%2) {instance name: a} primitive_attrs: {group: "tensor", fusion: I64(0)}
      : (<Tensor[Float16], (4, 8)>) -> (<Tensor[Float16], (4, 8)>)
  %4(CNode_5) = AlltoAllV(%3, %para2_ids) primitive_attrs: {group: "exchange"}
      : (<Tensor[Float16], (4, 8)>, <Tensor[Int32], (2)>) -> (<Tensor[Float16], (-1)>)
  %5(CNode_6) = PrimFunc_Reshape(%3, (I64(32))) cnode_attrs: {}
      : (<Tensor[Float16], (4, 8)>) -> (<Tensor[Float16], (32)>)
  %6(CNode_7) = MakeTuple(%4, %5) cnode_attrs: {}
      : (<Tensor[Float16], (-1)>, <Tensor[Float16], (32)>) -> (<Tuple[Tensor[Float16]*2], TupleShape((-1), (32))>)
  Return(%6)
}
"""


def test_a_saved_graph_gives_inputs_collectives_order_and_live_bytes(tmp_path):
    (tmp_path / "graph.ir").write_text(IR)

    nodes = graph.read_graph(tmp_path / "graph.ir")

    assert graph.inputs(tmp_path / "graph.ir") == ({"block.w": 256}, [64, 8])
    assert graph.collectives(nodes) == {("AllReduce", "tensor"): (1, 64), ("AlltoAllV", "exchange"): (1, 64)}
    assert graph.order(nodes) == ["MatMul", "AllReduce tensor", "AlltoAllV exchange"]
    # first the weight in half precision and the product; then the product and its sum, which stays alive
    assert graph.live_bytes(nodes) == 128 + 64


def test_a_difference_from_the_arithmetic_is_printed_and_counted(capsys):
    config = load_config(PROJECT / "recipes" / "pangu_sigma_node.yaml")
    budget = Budget.from_config(config)
    functions = {
        name: {
            "collectives": [(*key[1:], *value) for key, value in budget.collectives.items() if key[0] == name],
            "parameters": {},
            "inputs": [],
            "live": 0,
            "order": [],
        }
        for name in ("lower_forward", "upper_step", "lower_backward", "update", "push_rows")
    }
    functions["lower_forward"]["parameters"] = {"weights": budget.weights}
    functions["update"]["parameters"] = {"weights": budget.weights, "adam_m": budget.moments}
    functions["upper_step"]["inputs"] = [7, budget.slabs, 5, 5]
    result = {"functions": functions, "groups": {}, "operators": "composed", "slabs": 1, "counts": 2}

    assert print_report(config, 0, result, budget, order=False) == 0

    functions["update"]["parameters"]["adam_v"] = 1
    functions["lower_forward"]["collectives"] = [("AllReduce", "data", 49, 5)]

    # the moments, an unexpected collective, and a missing one
    assert print_report(config, 0, result, budget, order=False) == 3
    assert "49 × 2097.15" in capsys.readouterr().out


@pytest.mark.parametrize(("ranks", "expert"), [(8, 1), (24, 1), (40, 1), (64, 8), (96, 4), (512, 16)])
def test_experts_are_divided_among_as_many_ranks_as_possible(ranks, expert):
    config = with_ranks(load_config(PROJECT / "recipes" / "pangu_sigma_node.yaml"), ranks)

    assert (Mesh.from_config(config).size, config.parallelism.expert_parallel) == (ranks, expert)


def compile_offline(*arguments):
    command = [sys.executable, str(PROJECT / "tools" / "compile_offline.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=PROJECT)


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    try:
        cann_stub.build(tmp_path_factory.mktemp("stubs"))
    except cann_stub.StubError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [8, 64, 512])
@pytest.mark.parametrize("recipe", ["pangu_sigma_node", "pangu_sigma_1t"])
def test_the_graphs_of_a_rank_agree_with_the_arithmetic(stubs, recipe, ranks):
    overrides = [word for key, value in SMALL.items() for word in (f"--{key}", value)]

    done = compile_offline(
        "--config", f"recipes/{recipe}.yaml", "--ranks", ranks, "--rank", ranks - 1, "--order", *overrides
    )

    assert done.returncode == 0, done.stderr + done.stdout
    assert f"rank {ranks - 1} of {ranks}; " in done.stdout
    assert "arithmetic has" not in done.stdout
    assert done.stdout.count("the same") >= 4
    (order,) = (line for line in done.stdout.splitlines() if line.startswith("upper_step: "))
    # queries, keys, and values; the attention; its output, which is summed over the ranks of a node
    assert (
        "upper_step: MatMulExt × 2 → BatchMatMul → MatMulExt → BatchMatMul → MatMulExt → AllReduce tensor → " in order
    )
    assert ("AlltoAllV exchange" in order) == (ranks > 8)  # on a single node every rank has all experts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", 12], "--ranks 12 is not a multiple of parallelism.tensor_parallel 8"),
        (["--rank", 8], "--rank 8 is not one of the 8 ranks, 0 to 7"),
        (["--model.hiden_size", 8], "unknown key model.hiden_size"),
        (["--training.steps"], "unrecognized arguments: --training.steps"),
        (["--model.rre_layers=0"], "dense model"),
    ],
)
def test_a_wrong_option_is_named(arguments, message):
    done = compile_offline("--config=recipes/pangu_sigma_node.yaml", *arguments)

    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
