"""No code opens a file for writing in place: files are written through files.py, or for a reason that is listed here.

A file that is opened in place may be half-written, may be written by two processes at once, or may be a hard link of a
file in a checkpoint.
"""

import ast
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]

# The functions that write files for all others.
WRITERS = {"mindpangu/files.py", "mindpangu/locks.py", "ascend_ops/files.py"}

APPENDED = "append-only"
NEW = "a new file in a scratch folder, where the name cannot be taken"
TEMPORARY = "in a temporary folder of its own"
UNMUTATED = "a record of a tool that must not import the modules that it mutates"

# (file, function) → why it writes without files.py
ALLOWED = {
    ("mindpangu/train/metrics.py", "MetricsFile.on_start"): APPENDED,
    ("mindpangu/train/metrics.py", "set_aside"): "renames what is in the way to a free name",
    ("mindpangu/cli/streams.py", "guarded_streams"): "/dev/null",
    ("mindpangu/cli/streams.py", "_Guarded._drop_output_on_failure"): "/dev/null",
    ("mindpangu/figures.py", "write_figure"): NEW,
    ("mindpangu/train/callbacks.py", "Progress.on_start"): APPENDED,
    ("ascend_ops/native.py", "library"): APPENDED + ": the lock, whose content nobody reads",
    ("mindpangu/data/shard_writer.py", "_HashedFile.__enter__"): "hashes what it writes; removes an earlier file first",
    ("mindpangu/tiny/trials/pool.py", "_RunningProcesses.run"): "output of a process; removes an earlier file first",
    ("mindpangu/parallel/watcher.py", "Watcher._publish"): "a script with the standard library only; renames the file",
    ("mindpangu/checkpoint/writer.py", "CheckpointWriter.link"): "falls back to the caller, which writes the file",
    ("mindpangu/checkpoint/rank_reports.py", "RankReports._put"): "renames a new file in the scratch folder",
    ("mindpangu/checkpoint/directory.py", "remove"): "renames what it is about to remove",
    ("mindpangu/lifecycle/pangu_alpha/convert.py", "_save_table"): NEW,
    ("ascend_ops/bench/plot.py", "plot_records"): NEW,
    ("tools/instruction_records.py", "convert"): NEW,
    ("ascend_ops/emulator/build.py", "_compile"): TEMPORARY + ", from which it is renamed",
    ("ascend_ops/grouped_all_to_all/bench.py", "Workers.__init__"): TEMPORARY,
    ("ascend_ops/grouped_all_to_all/bench.py", "worker"): "its standard output",
    ("tools/mutate_kernels.py", "verdict"): TEMPORARY,
    ("tools/mutate_python.py", "_test"): TEMPORARY + ", which holds a copy of the project",
    ("tools/mutate_python.py", "load_coverage"): UNMUTATED,
    ("tools/mutate_python.py", "main"): UNMUTATED,
    ("tools/python_mutants/coverage.py", "Tracer.pytest_sessionfinish"): TEMPORARY,
    ("tools/python_mutants/tree.py", "copy_tree"): TEMPORARY,
    ("tools/python_mutants/tree.py", "_run_in_child"): TEMPORARY,
    ("tools/ascend_offline/operator_package.py", "write"): TEMPORARY,
    ("tools/ascend_offline/cann_stub.py", "build"): TEMPORARY,
    ("tools/ecss_bench/scaling.py", "memory_limit"): "no file, but a limit of the kernel",
    ("tools/ecss_bench/scaling.py", "_enter_group"): "no file, but a limit of the kernel",
}

WRITING_METHODS = {"write_text", "write_bytes", "rename", "hardlink_to", "link_to", "savefig", "tofile"}
WRITING_FUNCTIONS = {
    "os.link",
    "os.replace",
    "os.rename",
    "os.renames",
    "os.truncate",
    "np.save",
    "np.savez",
    "np.savez_compressed",
    "np.savetxt",
    "numpy.save",
    "shutil.copy",
    "shutil.copy2",
    "shutil.copyfile",
    "shutil.copytree",
    "shutil.move",
    "tempfile.mkstemp",
    "tempfile.NamedTemporaryFile",
}


def is_write(call):
    """True if a call may write a file in place, or give one a name."""
    name = ast.unparse(call.func)
    if name in WRITING_FUNCTIONS:
        return True
    if name == "os.open":
        return any(flag in ast.unparse(call) for flag in ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"))
    modes = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    if name in ("open", "io.open", "os.fdopen"):
        modes += call.args[1:2]
        return any(not isinstance(mode, ast.Constant) or _writes(mode) for mode in modes)
    if isinstance(call.func, ast.Attribute) and call.func.attr == "open":  # perhaps of a path
        modes += call.args[:1]
        return any(isinstance(mode, ast.Constant) and _writes(mode) for mode in modes)
    return isinstance(call.func, ast.Attribute) and call.func.attr in WRITING_METHODS


def _writes(mode):
    return re.fullmatch("[rwaxbt+]+", str(mode.value)) is not None and bool(set(mode.value) & set("wax+"))


def writes_in(source):
    """Returns {function: line of its first write} of a module."""
    found = {}

    def visit(node, names):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            names = [*names, node.name]
        elif isinstance(node, ast.Call) and is_write(node):
            found.setdefault(".".join(names), node.lineno)
        for child in ast.iter_child_nodes(node):
            visit(child, names)

    visit(ast.parse(source), [])
    return found


def all_writes():
    found = {}
    for folder in ("mindpangu", "ascend_ops", "tools"):
        for path in sorted((PROJECT / folder).rglob("*.py")):
            name = path.relative_to(PROJECT).as_posix()
            if name not in WRITERS:
                found |= {(name, function): line for function, line in writes_in(path.read_text("utf-8")).items()}
    return found


def test_files_are_written_through_files_py_only():
    found = all_writes()

    new = [f"{file}:{line} ({function})" for (file, function), line in found.items() if (file, function) not in ALLOWED]
    assert not new, f"write these through mindpangu/files.py: {new}"
    assert not ALLOWED.keys() - found.keys(), "these write nothing any more: take them from the list"


@pytest.mark.parametrize(
    "write",
    [
        "open(path, 'w')",
        "open(path, mode='ab')",
        "open(path, mode)",
        "path.open('r+')",
        "os.fdopen(number, 'w')",
        "os.open(path, os.O_RDWR | os.O_CREAT)",
        "path.write_text('')",
        "(folder / 'name').write_bytes(b'')",
        "os.link(a, b)",
        "shutil.copy(a, b)",
        "figure.savefig(path)",
        "np.save(path, values)",
    ],
)
def test_each_way_to_write_is_found(write):
    assert writes_in(f"class A:\n    def b(self):\n        {write}\n") == {"A.b": 3}


@pytest.mark.parametrize(
    "read", ["open(path)", "open(path, 'rb')", "path.open()", "safe_open(path)", "text.replace(a, b)"]
)
def test_reading_is_not_reported(read):
    assert writes_in(read) == {}
