"""Switches the process to UTF-8 if the locale only has ASCII, as in many containers (LC_ALL=C)."""

import codecs
import os
import sys


def restart_in_utf8_mode() -> None:
    """Restarts the interpreter, in the same process, if it decodes file names and options as ASCII.

    It could not open a file with a Chinese name, and would read a Chinese prompt as bytes. An interpreter cannot change
    this once it runs. Its child processes inherit the mode. Locales with another encoding, such as GBK, are left alone.
    """
    is_ascii = codecs.lookup(sys.getfilesystemencoding()).name == "ascii"
    if is_ascii and not sys.flags.utf8_mode and sys.executable:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
