"""Makes UTF-8 the encoding of the process where the locale knows only ASCII, as in many containers (LC_ALL=C)."""

import codecs
import os
import sys


def restart_in_utf8_mode() -> None:
    """Starts the interpreter anew, in the same process, if it takes file names and options for ASCII.

    It would open no file with a Chinese name, and read a Chinese prompt as bytes. Only a new interpreter decodes them
    otherwise. Processes that it starts inherit the mode. Locales with another encoding, such as GBK, stay as they are.
    """
    is_ascii = codecs.lookup(sys.getfilesystemencoding()).name == "ascii"
    if is_ascii and not sys.flags.utf8_mode and sys.executable:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
