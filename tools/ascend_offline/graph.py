"""Reads a graph that MindSpore has saved (`save_graphs`, stage "validate"): its inputs, its collectives, the order of
its operators, and the bytes that are alive at once in that order."""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

COLLECTIVES = ("AllReduce", "AllGather", "ReduceScatter", "AlltoAllV")
PRODUCTS = ("MatMul", "MatMulExt", "BatchMatMul", "GroupedMatmul")

# operators that allocate no memory: they return an input or a part of it without a copy, or write into an input
_VIEWS = set("Reshape ExpandDims Squeeze MakeTuple TupleGetItem Depend Load UpdateState Assign Adam".split())
_BYTES = {"Float16": 2, "BFloat16": 2, "Float32": 4, "Int32": 4, "Int64": 8, "Bool": 1}
_TENSOR = re.compile(r"Tensor\[(\w+)\]+>?, \(([-\d, ]*)\)")
_NODE = re.compile(r"  (%\w+)\(\S+\) = (?:PrimFunc_|Prim_)?(\w+)\((.*?)\)(?: \{| primitive_attrs| cnode_attrs|$)")


@dataclass(frozen=True)
class Node:
    """One operator of a graph.

    Attributes:
        name: name of its result, e.g. "%12".
        operator: name of the operator, e.g. "MatMul".
        inputs: names of the values that it reads.
        group: name of a collective's group; "" for other operators.
        bytes_in: bytes of its first input, which is what a collective takes from this rank.
        bytes_out: bytes of all its results.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    group: str
    bytes_in: int
    bytes_out: int


def read_graph(path: Path) -> list[Node]:
    """Returns the nodes in the order of the file, in which every value is defined before it is used."""
    nodes = []
    for line, types in pairwise(path.read_text(encoding="utf-8").splitlines()):
        match = _NODE.match(line)
        if match is None:
            continue
        name, operator, arguments = match.groups()
        types_in, _, types_out = types.partition(" -> ")
        group = re.search(r'group: "([^"]+)"', line)
        nodes.append(
            Node(
                name=name,
                operator=operator,
                inputs=tuple(re.findall(r"%\w+", arguments)),
                group=group[1] if group and operator in COLLECTIVES else "",
                bytes_in=_bytes(types_in, max_tensors=1),
                bytes_out=_bytes(types_out),
            )
        )
    return nodes


def _bytes(types: str, max_tensors: int | None = None) -> int:
    total = 0
    for dtype, shape in _TENSOR.findall(types)[:max_tensors]:
        size = _BYTES.get(dtype, 0)
        for axis in filter(None, shape.replace(" ", "").split(",")):
            size *= max(int(axis), 0)  # −1: not known when the graph is compiled
        total += size
    return total


def collectives(nodes: list[Node]) -> dict[tuple[str, str], tuple[int, int]]:
    """Returns (operator, group) → (number of calls, bytes that this rank passes to all of them)."""
    calls: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    for node in nodes:
        if node.group:
            calls[node.operator, node.group] += 1
            sizes[node.operator, node.group] += node.bytes_in
    return {key: (calls[key], sizes[key]) for key in calls}


def order(nodes: list[Node]) -> list[str]:
    """Returns collectives and matrix products in the order of the graph; a run of equal ones is "MatMul × 3"."""
    runs: list[tuple[str, int]] = []
    for node in nodes:
        if not node.group and node.operator not in PRODUCTS:
            continue
        name = f"{node.operator} {node.group}".strip()
        if runs and runs[-1][0] == name:
            runs[-1] = (name, runs[-1][1] + 1)
        else:
            runs.append((name, 1))
    return [name if count == 1 else f"{name} × {count}" for name, count in runs]


def inputs(path: Path) -> tuple[dict[str, int], list[int]]:
    """Returns the inputs of a graph: (Parameter name → bytes, bytes of each other input in order)."""
    parameters = {}
    others = []
    for line in path.read_text(encoding="utf-8").split("\nNode counting", 1)[0].splitlines():
        if not line.startswith("%para"):
            continue
        if name := re.search(r"ref_key=([^,>]+)", line):
            parameters[name[1]] = _bytes(line)
        else:
            others.append(_bytes(line))
    return parameters, others


def live_bytes(nodes: list[Node]) -> int:
    """Returns the peak memory of the values that the graph computes, if its nodes run in the order of the file.

    Inputs do not count. The graph's results stay alive to the end.
    """
    buffers = _buffers(nodes)
    allocated = [0 if node.operator in _VIEWS else node.bytes_out for node in nodes]
    index_of = {node.name: index for index, node in enumerate(nodes)}

    last_use: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in node.inputs:
            last_use |= dict.fromkeys(buffers.get(name, ()), index)
        last_use[node.name] = index
    last_use |= dict.fromkeys(buffers[nodes[-1].name], len(nodes))  # results stay

    freed_after: Counter[int] = Counter()
    for name, index in last_use.items():
        freed_after[index] += allocated[index_of[name]]

    alive = 0
    peak = 0
    for index in range(len(nodes)):
        alive += allocated[index]
        peak = max(peak, alive)
        alive -= freed_after[index]
    return peak


def _buffers(nodes: list[Node]) -> dict[str, frozenset[str]]:
    """Returns value → the nodes that allocated the memory it occupies."""
    buffers: dict[str, frozenset[str]] = {}
    for node in nodes:
        if node.operator in _VIEWS:
            inside = (buffers.get(name, frozenset()) for name in node.inputs)
            buffers[node.name] = frozenset().union(*inside)
        else:
            buffers[node.name] = frozenset([node.name])
    return buffers
