"""Prepares the interpreter for file names in any language: sets the encoding and cleans up the import path."""

import codecs
import os
import sys
from pathlib import Path


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


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
