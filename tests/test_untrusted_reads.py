"""Files are read with `untrusted.py` and what is built on it: no other code parses JSON or opens a file for reading.

The exceptions are listed below, each with its reason.
"""

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]

PARSERS = {
    "json.load",
    "json.loads",
    "np.load",
    "np.fromfile",
    "np.memmap",
    "mmap.mmap",
    "yaml.load",
    "yaml.safe_load",
    "pickle.load",
    "pickle.loads",
    "safe_open",
    "load_tensors",
    "os.open",
}
READERS = {"read_text", "read_bytes", "ParseFromString", "FromString"}  # methods, e.g. of Path

ALLOWED = {
    "untrusted.py": {"open", "os.open"},  # open_file itself
    "files.py": {
        "os.open",  # open_nofollow, for writing
        "open",  # read_chunks hashes files that a user names, such as a corpus, whatever they hold
        "read_text",  # read_text_leniently: a log that is only shown
    },
    "locks.py": {"os.open", "read_text", "open"},  # locks of running jobs; /proc
    "stage.py": {"json.loads"},  # of what json.dumps has just written
    "checkpoint/rank_reports.py": {"json.loads", "read_bytes", "read_text"},  # what the ranks of a job report
    "cli/streams.py": {"os.open"},  # /dev/null
    "config/loader.py": {"yaml.safe_load"},  # of what to_yaml has just written
    "data/shards.py": {"np.memmap"},  # of a file that open_file has opened, whose size the index states
    "experts/host_memory.py": {"mmap.mmap"},  # of memory
    "lifecycle/pangu_alpha/mindspore_file.py": {"mmap.mmap"},  # of a file that open_file has opened
    "lifecycle/pangu_alpha/source.py": {"np.load"},  # NumPy's format, without pickles, after open_file
    "lifecycle/pangu_alpha/strategy.py": {"ParseFromString"},  # protobuf, of bytes that read_bytes has read
    "parallel/watcher.py": {"json.loads", "read_text", "open"},  # what ranks of this job report; /proc
    "tiny/trials/process.py": {"json.loads"},  # an option that this project's own parent process passes
    "tokenizer/compact.py": {"FromString"},  # protobuf, of a model that sentencepiece has loaded
    "tokenizer/extend.py": {"FromString"},  # protobuf, of bytes that read_model has read
    "user_input.py": {"open"},  # text_lines: line by line, of what a glob pattern found to be a regular file
}


def reading_calls(tree):
    """Yields (line, name) of each call in a module that opens a file for reading or parses its content."""
    own = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "mindpangu.untrusted"
        for alias in node.names
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        method = node.func.attr if isinstance(node.func, ast.Attribute) else None
        if (name in PARSERS and name not in own) or method in READERS:
            yield node.lineno, method if method in READERS else name
        elif (name == "open" and "r" in mode_of(node, position=1)) or (method == "open" and is_path_open(node)):
            yield node.lineno, "open"


def mode_of(call, position):
    modes = [keyword.value for keyword in call.keywords if keyword.arg == "mode"] + call.args[position : position + 1]
    return modes[0].value if modes and isinstance(modes[0], ast.Constant) else "r"


def is_path_open(call):
    """True for `path.open()` and `path.open("rb")`, but not for other methods of this name, as of `TokenShards`."""
    first = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None
    return not (call.args or call.keywords) or (isinstance(first, str) and first.startswith("r"))


def test_files_are_read_only_with_checked_readers():
    found = {}
    for path in sorted((PROJECT / "mindpangu").rglob("*.py")):
        module = path.relative_to(PROJECT / "mindpangu").as_posix()
        for line, name in reading_calls(ast.parse(path.read_text(encoding="utf-8"))):
            if name not in ALLOWED.get(module, ()):
                found[f"{module}:{line}"] = name

    assert not found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("json.loads(text)", ["json.loads"]),
        ("path.read_text()", ["read_text"]),
        ("Path(x).read_bytes()", ["read_bytes"]),
        ("open(path)", ["open"]),
        ("open(path, 'rb')", ["open"]),
        ("open(path, mode='r')", ["open"]),
        ("open(path, 'wb')", []),
        ("open(path, 'a', buffering=1)", []),
        ("path.open()", ["open"]),
        ("path.open('rb')", ["open"]),
        ("path.open('w')", []),
        ("TokenShards.open(folder)", []),
        ("np.load(path)", ["np.load"]),
        ("from mindpangu.untrusted import read_bytes\nread_bytes(path)", []),
    ],
)
def test_each_way_to_read_is_found(source, expected):
    assert [name for _, name in reading_calls(ast.parse(source))] == expected
