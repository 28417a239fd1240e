"""tools/mutate_python.py: the edits that it makes, and a run on a small project."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def find(monkeypatch):
    """find(source) returns (kind, changed line) of every mutant."""
    monkeypatch.syspath_prepend(str(TOOLS))
    from python_mutants import edits

    def changes(source):
        encoded = textwrap.dedent(source).encode()
        mutants = edits.find("source.py", encoded)
        return {(each.kind, each.apply(encoded).decode().splitlines()[each.line - 1].strip()) for each in mutants}

    return changes


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ok = a < b", ("comparison", "ok = (a <= b)")),
        ("ok = a in b", ("comparison", "ok = (a not in b)")),
        ("x = a * b", ("arithmetic", "x = (a // b)")),
        ("ok = a and b", ("and/or", "ok = (a or b)")),
        ("ok = not a", ("negation", "ok = (a)")),
        ("x = a[:n]", ("slice", "x = (a[:n + 1])")),
        ("x = range(n)", ("slice", "x = (range(n - 1))")),
        ("x = f(a, b)", ("argument swap", "x = (f(b, a))")),
        ("x = max(a, 2)", ("counterpart", "x = (min(a, 2))")),
        ("x = 7", ("constant", "x = (8)")),
        ("x = 7", ("constant", "x = (6)")),
        ("flag = True", ("constant", "flag = (False)")),
        ("x[0] = a", ("deletion", "pass")),
        ("x += a", ("deletion", "pass")),
        ("f(a)", ("deletion", "pass")),
        ("if a: b = c", ("negation", "if (not (a)): b = c")),
    ],
)
def test_an_edit_of_each_kind(find, line, expected):
    assert expected in find(line)


def test_a_return_value_and_a_raise_are_edited(find):
    changes = find("""
        def f(a):
            if a:
                raise ValueError("the text is not" + str(1))
            return a
    """)

    assert {("return value", "return None"), ("deletion", "pass"), ("negation", "if (not (a)):")} == changes


def test_annotations_decorators_and_messages_are_left_alone(find):
    changes = find('''
        """A docstring."""

        @cached(size=3)
        def f(a: "int | 1") -> Literal[1]:
            """A docstring."""
            log(f"{a + 1} steps", 2)
            x: Literal[2] = f"{a + 1}"
    ''')

    assert changes == set()


def test_functions_that_plot_are_left_alone(find):
    assert find("def plot_loss(axes):\n    axes.set(fontsize=9)\n") == set()


def test_text_that_is_not_ascii_does_not_shift_an_edit(find):
    assert ("constant", 'x = "十亿" + str((2))') in find('x = "十亿" + str(1)')


@pytest.mark.slow
def test_a_run_names_the_mutants_that_no_test_notices_and_leaves_the_project_alone(tmp_path):
    project = tmp_path / "project"
    files = {
        "mindpangu/toy/area.py": "def area(a, b):\n    return a * b\n\n\ndef unused(a):\n    return a + 1\n",
        "mindpangu/__init__.py": "",
        "tests/toy/test_area.py": (
            "from mindpangu.toy.area import area\n\n\ndef test_area():\n    assert area(3, 4) == 12\n"
        ),
        "pyproject.toml": "[tool.pytest.ini_options]\naddopts = '--import-mode=importlib'\n",
        "tools/mutate_python.py": (TOOLS / "mutate_python.py").read_text(),
    }
    for path in sorted((TOOLS / "python_mutants").glob("*.py")):
        files[f"tools/python_mutants/{path.name}"] = path.read_text()
    for name, text in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    subprocess.run(["git", "init", "-q", str(project)], check=True)
    command = [sys.executable, "tools/mutate_python.py", "toy", "--tests", "tests/toy", "--mutants", "100"]

    done = subprocess.run(command, cwd=project, capture_output=True, text=True)

    assert done.returncode == 1, done.stderr
    table = [line.split() for line in done.stdout.splitlines()]
    assert ["toy", "6", "2", "0", "4", "33.3%"] in table
    assert "mindpangu/toy/area.py:6 arithmetic (no test runs this line" in done.stdout
    assert "-    return a + 1\n+    return (a - 1)" in done.stdout
    assert {name: (project / name).read_text() for name in files} == files
