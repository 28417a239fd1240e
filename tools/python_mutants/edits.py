"""Finds the edits that turn a Python source into its mutants."""

import ast
import copy
import difflib
from collections.abc import Iterator
from dataclasses import dataclass

_OPPOSITE: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
_COUNTERPART = {"min": "max", "max": "min", "any": "all", "all": "any"}

# names of functions that only print or log
_LOGGING = {"log", "print", "debug", "info", "warning", "warn"}


@dataclass(frozen=True)
class Mutant:
    """One edit of one source.

    Attributes:
        file: path of the source below the project folder.
        line: number of the first line that changes.
        begin, end: offsets of the bytes that change.
        new: text that replaces them.
        kind: kind of the edit, e.g. "comparison".
    """

    file: str
    line: int
    begin: int
    end: int
    new: str
    kind: str

    def apply(self, source: bytes) -> bytes:
        """Returns the mutated source."""
        return source[: self.begin] + self.new.encode() + source[self.end :]

    def diff(self, source: bytes) -> str:
        """Returns the changed lines, as in a unified diff."""
        before = source.decode().splitlines()
        after = self.apply(source).decode().splitlines()
        lines = list(difflib.unified_diff(before, after, lineterm="", n=0))
        return "\n".join(lines[3:])


def find(file: str, source: bytes) -> list[Mutant]:
    """Returns every mutant of a source, in the order of the source.

    Annotations, docstrings, decorators, f-strings, arguments of exceptions, and calls that only log are skipped: their
    mutants only change messages, or nothing. So are functions that plot, because no test should pin fonts and margins.
    """
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    mutants = []
    for node, new, kind in _edits(ast.parse(source)):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        mutants.append(Mutant(file, node.lineno, begin, end, new, kind))
    return sorted(set(mutants), key=lambda each: (each.begin, each.end, each.new))


def _edits(tree: ast.AST) -> Iterator[tuple[ast.AST, str, str]]:
    """Yields (node, text that replaces it, kind) below a node."""
    for node in _visited(tree):
        if isinstance(node, ast.expr):
            for changed, kind in _changed_expressions(node):
                yield node, f"({ast.unparse(changed)})", kind
        elif isinstance(node, ast.stmt):
            yield from _changed_statements(node)


def _visited(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.FunctionDef) and node.name.lstrip("_").startswith("plot"):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        if isinstance(node, ast.Raise) or isinstance(value, ast.JoinedStr):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.JoinedStr) or (isinstance(child, ast.Expr) and _only_logs(child)):
                continue
            if isinstance(child, ast.AST):
                yield from _visited(child)


def _only_logs(statement: ast.Expr) -> bool:
    """True for docstrings and for calls that log."""
    call = statement.value
    if not isinstance(call, ast.Call):
        return True
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in _LOGGING


def _changed_expressions(node: ast.expr) -> Iterator[tuple[ast.expr, str]]:
    """Yields (expression that replaces this one, kind of the edit)."""
    match node:
        case ast.Compare():
            for index, operator in enumerate(node.ops):
                changed = copy.deepcopy(node)
                changed.ops[index] = _OPPOSITE[type(operator)]()
                yield changed, "comparison"
        case ast.BinOp() if type(node.op) in _OPPOSITE:
            yield _with(node, op=_OPPOSITE[type(node.op)]()), "arithmetic"
        case ast.BoolOp():
            yield _with(node, op=_OPPOSITE[type(node.op)]()), "and/or"
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand, "negation"
        case ast.UnaryOp(op=ast.USub()) if not isinstance(node.operand, ast.Constant):
            yield node.operand, "sign"
        case ast.IfExp():
            yield _with(node, test=ast.UnaryOp(ast.Not(), node.test)), "negation"
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value), "constant"
        case ast.Constant(value=int() | float()):
            yield ast.Constant(node.value + 1), "constant"
            yield ast.Constant(node.value - 1), "constant"
        case ast.Call():
            yield from _changed_calls(node)
        case ast.Subscript(slice=ast.Slice()):
            for bound in ("lower", "upper"):
                value = getattr(node.slice, bound)
                if value is not None and not isinstance(value, ast.Constant):
                    changed = copy.deepcopy(node)
                    setattr(changed.slice, bound, ast.BinOp(value, ast.Add(), ast.Constant(1)))
                    yield changed, "slice"


def _changed_calls(node: ast.Call) -> Iterator[tuple[ast.expr, str]]:
    if isinstance(node.func, ast.Name) and node.func.id in _COUNTERPART:
        yield _with(node, func=ast.Name(_COUNTERPART[node.func.id])), "counterpart"
    first_two = node.args[:2]
    same = len(first_two) < 2 or ast.dump(first_two[0]) == ast.dump(first_two[1])
    symmetric = isinstance(node.func, ast.Name) and node.func.id in ("min", "max")
    if not same and not symmetric and not any(isinstance(each, ast.Starred) for each in first_two):
        yield _with(node, args=[first_two[1], first_two[0], *node.args[2:]]), "argument swap"
    if isinstance(node.func, ast.Name) and node.func.id == "range":
        yield _with(node, args=[*node.args[:-1], ast.BinOp(node.args[-1], ast.Sub(), ast.Constant(1))]), "slice"


def _changed_statements(node: ast.stmt) -> Iterator[tuple[ast.AST, str, str]]:
    match node:
        case ast.If() | ast.While():
            yield node.test, f"(not ({ast.unparse(node.test)}))", "negation"
        case ast.Return(value=ast.expr()) if not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield node, "return None", "return value"
        case ast.Expr() | ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break() | ast.Delete():
            yield node, "pass", "deletion"
        case ast.Assign(targets=[ast.Subscript()]):
            yield node, "pass", "deletion"


def _with(node: ast.expr, **fields: object) -> ast.expr:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed
