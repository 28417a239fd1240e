"""Handles failures of standard output and standard error: closed pipes, full disks, lost terminals."""

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

from mindpangu.display import printable

_STDOUT = "standard output"  # `filename` of the OSError that a failed write raises

_ERROR_HANDLER = "mindpangu_output"


def _encode(error: UnicodeError) -> tuple[bytes, int]:
    """Encodes characters that the encoding of standard output lacks; an error handler for `codecs`.

    The bytes of a file name that is not UTF-8 (PEP 383) are written unchanged, so that other programs find the file.
    Anything else becomes an escape, because a locale without UTF-8 must not end a training.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    pieces = []
    for character in error.object[error.start : error.end]:
        is_byte = "\udc80" <= character <= "\udcff"
        pieces.append(character.encode("ascii", "surrogateescape" if is_byte else "backslashreplace"))
    return b"".join(pieces), error.end


codecs.register_error(_ERROR_HANDLER, _encode)


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Guards the streams inside the block: the first failure of standard output raises an OSError that names it;
    failures of standard error are ignored.

    After a stream has failed once, everything written to it is dropped. On a terminal, control characters in names and
    generated texts appear as escapes; a pipe or a file gets the texts unchanged.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed at the start: the next file to be opened would get this number, and thus the output
            os.open(os.devnull, os.O_RDWR)
    streams = {"stdout": sys.stdout, "stderr": sys.stderr}
    for name, stream in streams.items():
        if isinstance(stream, io.TextIOWrapper):  # tests replace the streams
            stream.reconfigure(errors=_ERROR_HANDLER if name == "stdout" else "backslashreplace")
            setattr(sys, name, _Guarded(stream, raises=name == "stdout"))
        elif stream is None:  # closed at the start
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the process ends
    try:
        yield
    finally:
        for name, stream in streams.items():
            setattr(sys, name, stream)


class _Guarded:
    """A text stream whose file is replaced with /dev/null when a write fails."""

    def __init__(self, stream: io.TextIOWrapper, raises: bool):
        self._stream = stream
        self._raises = raises
        self._escapes = raises and stream.isatty()  # not for standard error, where progress bars move the cursor

    def write(self, text: str) -> int:
        with self._drop_output_on_failure():
            self._stream.write(printable(text) if self._escapes else text)
        return len(text)

    def flush(self) -> None:
        with self._drop_output_on_failure():
            self._stream.flush()

    @contextlib.contextmanager
    def _drop_output_on_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # discards buffered output, too, about which Python would otherwise complain on exit
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
            if self._raises:
                raise OSError(error.errno, error.strerror, _STDOUT) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
