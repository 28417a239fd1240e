"""Measures which lines each test runs, and how long it takes."""

import hashlib
import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from python_mutants.tree import run_tests

FILE_TIMEOUT_S = 1200


@dataclass(frozen=True)
class Test:
    """A test that passes on the sources as they are.

    Attributes:
        seconds: duration under the tracer, including fixtures that this test was the first to use.
        lines: path of a source below the project folder → the lines that the test ran in its own process.
    """

    seconds: float
    lines: dict[str, list[int]]


@dataclass
class Coverage:
    """The lines that tests run.

    Attributes:
        tests: node id → test.
    """

    tests: dict[str, Test] = field(default_factory=dict)

    def covering(self, file: str, line: int) -> list[str]:
        """Returns the node ids of the tests that run a line, fastest first.

        A line that no test seems to run may be compiled by MindSpore, run when its module is imported, or run in
        another process. In this case the result is the tests that run any line of its file, followed by the other tests
        of its package.
        """
        quickest_first = sorted(self.tests, key=lambda name: self.tests[name].seconds)
        if self.runs(file, line):
            return [name for name in quickest_first if line in self.tests[name].lines.get(file, ())]
        of_file = [name for name in quickest_first if file in self.tests[name].lines]
        folder = f"tests/{Path(file).parent.relative_to('mindpangu')}/"
        return of_file + [name for name in quickest_first if name.startswith(folder) and name not in of_file]

    def runs(self, file: str, line: int) -> bool:
        """True if a test runs this line in its own process."""
        return any(line in test.lines.get(file, ()) for test in self.tests.values())


class Tracer:
    """A pytest plugin that writes the `Test`s of a run to a file."""

    def __init__(self, tree: Path, output: Path):
        self.root = f"{tree}/"
        self.prefix = f"{tree}/mindpangu/"
        self.output = output
        self.lines: dict[str, set[int]] = defaultdict(set)
        self.seconds: dict[str, float] = {}
        self.covered: dict[str, dict[str, list[int]]] = {}
        self.passed: set[str] = set()
        self.failed: set[str] = set()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Traces one test, with its fixtures."""
        self.lines = defaultdict(set)
        start = time.monotonic()
        threading.settrace(self._enter)
        sys.settrace(self._enter)
        yield
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        self.seconds[item.nodeid] = time.monotonic() - start
        self.covered[item.nodeid] = {name: sorted(lines) for name, lines in self.lines.items()}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Records which tests pass and which fail."""
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)
        if report.failed:
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Writes the file."""
        tests = {
            name: {"seconds": round(self.seconds[name], 3), "lines": self.covered[name]}
            for name in sorted(self.passed - self.failed)
        }
        self.output.write_text(json.dumps({"tests": tests, "failed": sorted(self.failed)}))

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(self.prefix):
            return None
        lines = self.lines[name.removeprefix(self.root)]

        def line(frame: FrameType, event: str, argument: Any) -> Any:
            lines.add(frame.f_lineno)
            return line

        return line(frame, event, argument)


def measure(tree: Path, file: str) -> dict[str, Any]:
    """Runs one test file under the tracer.

    Returns:
        {"tests": node id → fields of `Test`, "failed": node ids of the tests that fail without a mutant}.

    Raises:
        RuntimeError: pytest did not finish.
    """
    output = tree.with_name(f"{tree.name}.coverage")
    output.unlink(missing_ok=True)
    code = run_tests(tree, [file], FILE_TIMEOUT_S, plugins=(Tracer(tree, output),))
    if not output.exists():
        log = tree.with_name(f"{tree.name}.log").read_text(errors="replace")
        raise RuntimeError(f"the tests of {file} do not run ({code}):\n{log[-3000:]}")
    return json.loads(output.read_text())


def digest(root: Path, file: str, sources: set[str]) -> str:
    """Returns a hash of a test file and of the sources that its tests run."""
    content = hashlib.sha256()
    for name in [file, *sorted(sources)]:
        path = root / name
        content.update(path.read_bytes() if path.exists() else b"")
    return content.hexdigest()
