"""Every program in tools/ ends a mistake with one message, as the verbs do."""

import ast
import errno
from pathlib import Path

import pytest

from ascend_ops.native import OperatorError
from mindpangu.cli.programs import run_program
from mindpangu.errors import DataError

TOOLS = Path(__file__).parents[2] / "tools"
OTHERS = {
    "compile_offline.py": "starts itself again, and reports errors of the compiler, too",
    "mutate_kernels.py": "uses ascend_ops only",
    "mutate_python.py": "must not import the modules that it mutates",
}


@pytest.mark.parametrize("path", sorted(TOOLS.glob("*.py")), ids=lambda path: path.stem)
def test_a_program_reports_errors_like_a_verb(path):
    ends_with = ast.unparse(ast.parse(path.read_text("utf-8")).body[-1])

    assert (ends_with == "if __name__ == '__main__':\n    run_program(main)") != (path.name in OTHERS)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DataError("no text\x1b[2J"), "error: no text\\x1b[2J\n"),
        (OperatorError("no compiler"), "error: no compiler\n"),
        (OSError(errno.ENOSPC, "full", "a.json"), "error: a.json: full\n"),
        (KeyboardInterrupt(), ""),
    ],
)
def test_an_error_is_one_line(capsys, error, message):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        run_program(main)

    assert stop.value.code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert capsys.readouterr().err == message


def test_a_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_program(lambda: 1 // 0)
