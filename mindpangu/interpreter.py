"""Prepares the interpreter: the encoding of file names, the import path, and where MindSpore reports failures."""

import codecs
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

_REPORTS = "MS_OM_PATH"  # the folder in which MindSpore creates rank_0/om/analyze_fail.ir
_REPORTS_NAME = "mindpangu-reports-"


def prepare_interpreter() -> None:
    """Prepares the interpreter. Programs call this before anything else.

    If the locale has only ASCII (LC_ALL=C, as in many containers), restarts the interpreter in UTF-8 mode, in the same
    process: otherwise it could not open a file with a Chinese name, and would read a Chinese prompt as bytes. Child
    processes inherit the mode. Locales with another encoding, such as GBK, are left alone.

    `python -m` puts the working directory on sys.path. If its name is not UTF-8, MindSpore cannot compile
    (`unreadable_import_path`), so it is removed; nothing is imported from there. (Python 3.11 has -P for this.)
    """
    is_ascii = codecs.lookup(sys.getfilesystemencoding()).name == "ascii"
    if is_ascii and not sys.flags.utf8_mode and sys.executable:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        return
    if not _is_utf8(here) and Path(here) != Path(__file__).parents[1]:
        sys.path[:] = [folder for folder in sys.path if folder != here]


def unreadable_import_path() -> str | None:
    """Returns a folder in sys.path whose name is not UTF-8, or None. MindSpore reads all of these names when it
    compiles, and fails at such a name."""
    return next((folder for folder in sys.path if isinstance(folder, str) and not _is_utf8(folder)), None)


@contextlib.contextmanager
def divert_compiler_reports() -> Iterator[None]:
    """Keeps MindSpore's reports of failed compilations out of the working directory inside the block.

    A compilation also fails when a signal stops it. The reports go to a unique folder in the temporary one, which is
    removed at the end; if the block raises an exception, it stays, because the traceback refers to the report. A folder
    that the user chose with MS_OM_PATH is used and stays.
    """
    chosen = os.environ.get(_REPORTS)
    if chosen is not None and not Path(chosen).name.startswith(_REPORTS_NAME):  # a parent process's is not the user's
        yield
        return
    name = f"{_REPORTS_NAME}{os.getpid()}-{os.urandom(4).hex()}"
    folder = Path(os.environ.get("TMPDIR") or "/tmp", name)
    os.environ[_REPORTS] = str(folder)
    try:
        yield
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        if chosen is None:
            del os.environ[_REPORTS]
        else:
            os.environ[_REPORTS] = chosen


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
