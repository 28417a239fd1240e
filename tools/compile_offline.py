"""Compiles the Ascend graphs of selected ranks of a cluster on a machine without NPU and CANN.

    python tools/compile_offline.py --config recipes/pangu_sigma_1t.yaml [--ranks 512] [--rank 0 511]
                                    [--order] [--section.key value …]

MindSpore loads its Ascend plugin over stubs of CANN's libraries (tools/ascend_offline) and compiles the functions of a
training step: the dense half forward and backward, the upper half with its experts, the gradient sums, and the update.
The tool prints the memory that a rank needs, and every collective with its ranks, count, and bytes, and compares them
with the arithmetic of the mesh (mindpangu/planner/budget.py). A difference is an error. Nothing is executed: whether
these graphs run on NPUs, and how fast, is unverified on hardware.

It needs a C++ compiler, and a few minutes and GB per rank of a large model.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from ascend_offline import cann_stub
from ascend_offline.simulation import join_simulated_ranks, prepare, run_inside

from mindpangu.cli.main import split_overrides
from mindpangu.config import Config, load_config
from mindpangu.domains import build_domains
from mindpangu.errors import MindPanguError
from mindpangu.parallel.mesh import Mesh
from mindpangu.planner.budget import Budget


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the run")
    parser.add_argument(
        "--ranks",
        type=int,
        help="number of ranks, instead of the configuration's: data_parallel becomes ranks / tensor_parallel, and "
        "experts are divided among as many of these ranks as possible",
    )
    parser.add_argument("--rank", type=int, nargs="+", default=[0], help="ranks to compile (default: 0)")
    parser.add_argument("--order", action="store_true", help="print collectives and matrix products in order")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)

    words, overrides = split_overrides(sys.argv[1:])
    options = parser.parse_args(words)
    try:
        config = with_ranks(load_config(options.config, dict(overrides)), options.ranks)
        if options.inside:
            join_simulated_ranks()
            from ascend_offline.compile_step import compile_step

            print(json.dumps(compile_step(config, options.rank[0])))
            return
        mesh = Mesh.from_config(config)
        print(f"mesh: {mesh.describe()}")
        if outside := [rank for rank in options.rank if not 0 <= rank < mesh.size]:
            raise MindPanguError(f"--rank {outside[0]} is not one of the {mesh.size} ranks, 0 to {mesh.size - 1}")
        budgets = {rank: Budget.from_config(config, rank) for rank in options.rank}  # refuses what it cannot count
        inside = ["--inside", f"--config={options.config.resolve()}"]
        inside += [f"--{key}={value}" for key, value in overrides]
        if options.ranks is not None:
            inside += ["--ranks", str(options.ranks)]
        num_differences = 0
        for rank in options.rank:
            result = compile_in_child_process(inside, rank, mesh.size)
            num_differences += print_report(config, rank, result, budgets[rank], options.order)
    except (MindPanguError, cann_stub.StubError, RuntimeError) as error:
        sys.exit(f"compile_offline: {error}")
    if num_differences:
        sys.exit(f"compile_offline: {num_differences} lines differ from the arithmetic of the mesh")


def with_ranks(config: Config, ranks: int | None) -> Config:
    """Returns the configuration for another number of ranks. Raises MindPanguError if tensor_parallel does not fit."""
    if ranks is None:
        return config
    tensor = config.parallelism.tensor_parallel
    if ranks < 1 or ranks % tensor:
        raise MindPanguError(f"--ranks {ranks} is not a multiple of parallelism.tensor_parallel {tensor}")

    data = ranks // tensor
    groups = config.data.domain_groups
    experts = max(domain.num_experts for domain in build_domains(config))
    sharing = [each for each in range(groups, data + 1, groups) if data % each == 0 and experts % (each // groups) == 0]

    parallelism = replace(config.parallelism, data_parallel=data, expert_parallel=max(sharing, default=1))
    batch = config.training.local_batch_size * data
    training = replace(config.training, global_batch_size=max(config.training.global_batch_size, batch))
    return replace(config, parallelism=parallelism, training=training)


def compile_in_child_process(arguments: list[str], rank: int, ranks: int) -> dict[str, Any]:
    """Returns the result of `compile_step` in a child process that simulates this rank."""
    command = [str(Path(__file__).resolve()), *arguments, "--rank", str(rank)]
    with tempfile.TemporaryDirectory() as folder:
        environment = prepare(Path(folder), ranks) | {"RANK_ID": str(rank)}
        try:
            return json.loads(run_inside(command, environment, Path(folder)))
        except RuntimeError as error:
            raise RuntimeError(f"the graphs of rank {rank} do not compile:\n{error}") from None


def print_report(config: Config, rank: int, result: dict[str, Any], budget: Budget, order: bool) -> int:
    """Prints the result of `compile_step`, and returns the number of lines that differ from the budget."""
    functions = result["functions"]
    weights = functions["lower_forward"]["parameters"] | functions["upper_step"]["parameters"]
    moments = {name: size for name, size in functions["update"]["parameters"].items() if name.startswith("adam_")}
    print(f"\nrank {rank} of {Mesh.from_config(config).size}; {result['operators']}")
    inputs = functions["upper_step"]["inputs"]
    end = len(inputs) - result["counts"]  # the counts of an exchange follow the slabs
    slabs = inputs[end - result["slabs"] : end]

    num_differences = 0
    for name, size, expected_size, unit, unit_name in (
        ("dense parameters", sum(weights.values()) // 4, budget.parameters, 1e6, "M"),
        ("their weights", sum(weights.values()), budget.weights, 1e9, "GB"),
        ("their moments", sum(moments.values()), budget.moments, 1e9, "GB"),
        ("experts per micro-batch", sum(slabs), budget.slabs, 1e9, "GB"),
    ):
        comparison = "as computed" if size == expected_size else f"arithmetic has {expected_size / unit:.3f}"
        print(f"{name:24}{size / unit:12.3f} {unit_name:5}{comparison}")
        num_differences += size != expected_size

    for name, function in functions.items():
        print(f"{name + ', live':24}{function['live'] / 1e9:12.3f} GB   at most, computed in the order of the graph")

    print(f"\n{'function':16}{'collective':15}{'group':24}{'times':>6}{'MB':>11}{'arithmetic':>19}")
    counted = {
        (name, operator, group): (times, size)
        for name, function in functions.items()
        for operator, group, times, size in function["collectives"]
    }
    for key in sorted(counted.keys() | budget.collectives.keys()):
        name, operator, group = key
        times, size = counted.get(key, (0, 0))
        expected_times, expected_size = budget.collectives.get(key, (0, 0))
        same = (times, size) == (expected_times, expected_size)
        num_differences += not same
        members = f"{group} {format_ranks(result['groups'].get(group, []))}"
        comparison = "the same" if same else f"{expected_times} × {expected_size / 1e6:.2f}"
        print(f"{name:16}{operator:15}{members:24}{times:>6}{size / 1e6:>11.2f}{comparison:>19}")

    if order:
        for name, function in functions.items():
            print(f"\n{name}: {' → '.join(function['order'])}")
    return num_differences


def format_ranks(ranks: list[int]) -> str:
    """Formats the members of a group, e.g. "0, 8 … 120"."""
    return ", ".join(map(str, ranks)) if len(ranks) <= 4 else f"{ranks[0]}, {ranks[1]} … {ranks[-1]}"


if __name__ == "__main__":
    main()
