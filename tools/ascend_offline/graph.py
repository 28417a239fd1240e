"""Reads a graph that MindSpore has written (`save_graphs`, the stage "validate"): parameters, collectives, order, and
how many bytes live at once if it runs in that order."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

COLLECTIVES = ("AllReduce", "AllGather", "ReduceScatter", "AlltoAllV")
PRODUCTS = ("MatMul", "MatMulExt", "BatchMatMul", "GroupedMatmul")
# What returns its inputs or parts of them without a copy, or writes into one.
_VIEWS = set("Reshape ExpandDims Squeeze MakeTuple TupleGetItem Depend Load UpdateState Assign Adam".split())
_BYTES = {"Float16": 2, "BFloat16": 2, "Float32": 4, "Int32": 4, "Int64": 8, "Bool": 1}
_TENSOR = re.compile(r"Tensor\[(\w+)\]+>?, \(([-\d, ]*)\)")
_NODE = re.compile(r"  (%\w+)\(\S+\) = (?:PrimFunc_|Prim_)?(\w+)\((.*?)\)(?: \{| primitive_attrs| cnode_attrs|$)")


@dataclass(frozen=True)
class Node:
    """One operator of a graph.

    Attributes:
        name, inputs: as the graph calls values, e.g. "%12".
        operator: e.g. "MatMul". group: of a collective, else "".
        bytes_in: of its first input, what a collective takes of this rank. bytes_out: of all that it returns.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    group: str
    bytes_in: int
    bytes_out: int


def read_graph(path: Path) -> list[Node]:
    """The nodes in the order of the file, in which inputs stand before what uses them."""
    nodes, lines = [], path.read_text().splitlines()
    for number, line in enumerate(lines):
        if not (found := _NODE.match(line)):
            continue
        taken, _, returned = lines[number + 1].partition(" -> ")
        group = re.search(r'group: "([^"]+)"', line)
        nodes.append(
            Node(
                found[1],
                found[2],
                tuple(re.findall(r"%\w+", found[3])),
                group[1] if group and found[2] in COLLECTIVES else "",
                _bytes(taken, 1),
                _bytes(returned),
            )
        )
    return nodes


def _bytes(types: str, most: int | None = None) -> int:
    total = 0
    for kind, shape in _TENSOR.findall(types)[:most]:
        size = _BYTES.get(kind, 0)
        for axis in filter(None, shape.replace(" ", "").split(",")):
            size *= max(int(axis), 0)  # −1: not known when the graph is compiled
        total += size
    return total


def collectives(nodes: list[Node]) -> dict[tuple[str, str], tuple[int, int]]:
    """(operator, group) → (times, bytes that this rank gives)."""
    times, sizes = Counter(), Counter()
    for node in nodes:
        if node.group:
            times[node.operator, node.group] += 1
            sizes[node.operator, node.group] += node.bytes_in
    return {key: (times[key], sizes[key]) for key in times}


def order(nodes: list[Node]) -> list[str]:
    """Collectives and matrix products in the order of the graph, equal ones that follow each other as "MatMul × 3"."""
    runs: list[list] = []
    for node in nodes:
        if not node.group and node.operator not in PRODUCTS:
            continue
        name = f"{node.operator} {node.group}".strip()
        if runs and runs[-1][0] == name:
            runs[-1][1] += 1
        else:
            runs.append([name, 1])
    return [name if count == 1 else f"{name} × {count}" for name, count in runs]


def inputs(path: Path) -> tuple[dict[str, int], list[int]]:
    """(name → bytes of the Parameters that a graph reads or writes, bytes of its other inputs in their order)."""
    named, others = {}, []
    for line in path.read_text().split("\nNode counting", 1)[0].splitlines():
        if not line.startswith("%para"):
            continue
        if name := re.search(r"ref_key=([^,>]+)", line):
            named[name[1]] = _bytes(line)
        else:
            others.append(_bytes(line))
    return named, others


def live_bytes(nodes: list[Node]) -> int:
    """The most that is alive at once of what the graph computes, its results among it, in the order of the file."""
    index = {node.name: node for node in nodes}
    buffers: dict[str, frozenset[str]] = {}  # value → the nodes whose memory it is in
    for node in nodes:
        inside = frozenset().union(*(buffers.get(name, frozenset()) for name in node.inputs))
        buffers[node.name] = inside if node.operator in _VIEWS else frozenset([node.name])
    last = {}
    for number, node in enumerate(nodes):
        for name in node.inputs:
            last |= dict.fromkeys(buffers.get(name, ()), number)
        last[node.name] = max(last.get(node.name, 0), number)
    last |= dict.fromkeys(buffers[nodes[-1].name], len(nodes))  # results stay
    ends: dict[int, int] = Counter()
    for name, number in last.items():
        if index[name].operator not in _VIEWS:
            ends[number] += index[name].bytes_out
    alive = most = 0
    for number, node in enumerate(nodes):
        if node.operator not in _VIEWS:
            alive += node.bytes_out
        most = max(most, alive)
        alive -= ends[number]
    return most
