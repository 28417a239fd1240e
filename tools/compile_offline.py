"""Compiles the Ascend graphs of chosen ranks of a cluster on a machine without NPU and CANN.

    python tools/compile_offline.py --config recipes/pangu_sigma_1t.yaml [--ranks 512] [--rank 0 511]
                                    [--order] [--section.key value …]

MindSpore loads its Ascend plugin over stubs of CANN's libraries (tools/ascend_offline) and compiles the functions of a
training step: the dense half forward and backward, the upper half with its experts, the sums of gradients, the update.
Printed are what a rank stores, and every collective with its ranks, times and bytes, beside the arithmetic of the mesh
(mindpangu/planner/budget.py); a difference is an error. Nothing is executed: that the same graphs run on NPUs, and
how fast, is unverified on hardware.

Needs a C++ compiler and a few minutes and GB for each rank of a large model.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

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
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the run")
    parser.add_argument(
        "--ranks",
        type=int,
        help="so many ranks instead of the configuration's: data_parallel is what tensor_parallel leaves, and experts "
        "are on as many of these ranks as a domain's group can be divided among",
    )
    parser.add_argument("--rank", type=int, nargs="+", default=[0], help="which of them to compile (0)")
    parser.add_argument("--order", action="store_true", help="print collectives and matrix products in their order")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    words, overrides = split_overrides(sys.argv[1:])
    options = parser.parse_args(words)
    try:
        config = on_ranks(load_config(options.config, dict(overrides)), options.ranks)
        if options.inside:
            join_simulated_ranks()
            from ascend_offline.compile_step import compile_step

            print(json.dumps(compile_step(config, options.rank[0])))
            return
        mesh = Mesh.from_config(config)
        print(f"mesh: {mesh.describe()}")
        if outside := [rank for rank in options.rank if not 0 <= rank < mesh.size]:
            raise MindPanguError(f"--rank {outside[0]} is not one of the {mesh.size} ranks, 0 to {mesh.size - 1}")
        inside = ["--inside", f"--config={options.config.resolve()}"]
        inside += [f"--{key}={value}" for key, value in overrides]
        if options.ranks is not None:
            inside += ["--ranks", str(options.ranks)]
        differ = 0
        for rank in options.rank:
            budget = Budget.from_config(config, rank)
            differ += describe(config, rank, compile_apart(inside, rank, mesh.size), budget, options.order)
    except (MindPanguError, cann_stub.StubError, RuntimeError) as error:
        sys.exit(f"compile_offline: {error}")
    if differ:
        sys.exit(f"compile_offline: {differ} lines differ from the arithmetic of the mesh")


def on_ranks(config: Config, ranks: int | None) -> Config:
    """The configuration on another number of ranks. Raises MindPanguError where they do not divide."""
    if ranks is None:
        return config
    tensor = config.parallelism.tensor_parallel
    if ranks < 1 or ranks % tensor:
        raise MindPanguError(f"--ranks {ranks} is no multiple of parallelism.tensor_parallel {tensor}")
    data, groups = ranks // tensor, config.data.domain_groups
    experts = max(domain.num_experts for domain in build_domains(config))
    sharing = [each for each in range(groups, data + 1, groups) if data % each == 0 and experts % (each // groups) == 0]
    parallelism = replace(config.parallelism, data_parallel=data, expert_parallel=max(sharing, default=1))
    batch = config.training.local_batch_size * data
    training = replace(config.training, global_batch_size=max(config.training.global_batch_size, batch))
    return replace(config, parallelism=parallelism, training=training)


def compile_apart(arguments: list[str], rank: int, ranks: int) -> dict:
    """What `compile_step` finds, in a process that believes to be this rank."""
    command = [str(Path(__file__).resolve()), *arguments, "--rank", str(rank)]
    with tempfile.TemporaryDirectory() as folder:
        environment = prepare(Path(folder), ranks) | {"RANK_ID": str(rank)}
        try:
            return json.loads(run_inside(command, environment, Path(folder)))
        except RuntimeError as error:
            raise RuntimeError(f"the graphs of rank {rank} do not compile:\n{error}") from None


def describe(config: Config, rank: int, found: dict, budget: Budget, order: bool) -> int:
    """Prints what was found; returns how many lines differ from the budget."""
    functions = found["functions"]
    weights = functions["lower_forward"]["parameters"] | functions["upper_step"]["parameters"]
    moments = {name: size for name, size in functions["update"]["parameters"].items() if name.startswith("adam_")}
    print(f"\nrank {rank} of {Mesh.from_config(config).size}; {found['operators']}")
    differ = line("dense parameters", sum(weights.values()) // 4, budget.parameters, 1e6, "M")
    differ += line("their weights", sum(weights.values()), budget.weights, 1e9, "GB")
    differ += line("their moments", sum(moments.values()), budget.moments, 1e9, "GB")
    inputs = functions["upper_step"]["inputs"]
    end = len(inputs) - found["counts"]  # the counts of an exchange follow the slabs
    slabs = inputs[end - found["slabs"] : end]
    differ += line("experts at a time", sum(slabs), budget.slabs, 1e9, "GB")
    for name, function in functions.items():
        print(f"{name + ', live':24}{function['live'] / 1e9:12.3f} GB   at most, computed in the order of the graph")
    print(f"\n{'function':16}{'collective':15}{'group':24}{'times':>6}{'MB':>11}{'arithmetic':>19}")
    counted = {
        (name, operator, group): (times, size)
        for name, function in functions.items()
        for operator, group, times, size in function["collectives"]
    }
    for key in sorted(counted.keys() | budget.collectives.keys()):
        (times, size), expected = counted.get(key, (0, 0)), budget.collectives.get(key, (0, 0))
        same = (times, size) == expected
        differ += not same
        where = f"{key[2]} {short(found['groups'].get(key[2], []))}"
        text = "the same" if same else f"{expected[0]} × {expected[1] / 1e6:.2f}"
        print(f"{key[0]:16}{key[1]:15}{where:24}{times:>6}{size / 1e6:>11.2f}{text:>19}")
    if order:
        for name, function in functions.items():
            print(f"\n{name}: {' → '.join(function['order'])}")
    return differ


def line(what: str, found: int, expected: int, unit: float, name: str) -> bool:
    """Prints a number and what it should be; returns whether they differ."""
    text = "as the arithmetic" if found == expected else f"the arithmetic has {expected / unit:.3f}"
    print(f"{what:24}{found / unit:12.3f} {name:5}{text}")
    return found != expected


def short(ranks: list[int]) -> str:
    """The members of a group, e.g. "0, 8 … 120"."""
    return ", ".join(map(str, ranks)) if len(ranks) <= 4 else f"{ranks[0]}, {ranks[1]} … {ranks[-1]}"


if __name__ == "__main__":
    main()
