"""Standard output and standard error of the command line, which can fail: closed pipes, full disks, lost terminals."""

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

from mindpangu.display import printable

NAME = "standard output"
"""The `filename` of an OSError that a write to standard output raised."""

_ERRORS = "mindpangu_output"


def _encode(error: UnicodeError) -> tuple[bytes, int]:
    """Encodes characters that the encoding of standard output lacks: an error handler of codecs.

    Bytes of a file name that are not UTF-8 (PEP 383) become these bytes again, so that other programs find the file.
    Anything else becomes an escape: a locale without UTF-8 must not end a training.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    pieces = []
    for character in error.object[error.start : error.end]:
        is_byte = "\udc80" <= character <= "\udcff"
        pieces.append(character.encode("ascii", "surrogateescape" if is_byte else "backslashreplace"))
    return b"".join(pieces), error.end


codecs.register_error(_ERRORS, _encode)


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Lets a failure of standard output raise one OSError that names it, and a failure of standard error raise none.

    After the first failure of a stream, what is written to it is dropped. On a terminal, control characters in names
    and generated texts appear as escapes; a pipe or a file gets the texts as they are.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed at the start: the next file that is opened would get this number, and the output
            os.open(os.devnull, os.O_RDWR)
    streams = {"stdout": sys.stdout, "stderr": sys.stderr}
    for name, stream in streams.items():
        if isinstance(stream, io.TextIOWrapper):  # tests replace the streams
            stream.reconfigure(errors=_ERRORS if name == "stdout" else "backslashreplace")
            setattr(sys, name, _Guarded(stream, raises=name == "stdout"))
        elif stream is None:  # closed at the start
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the process ends
    try:
        yield
    finally:
        for name, stream in streams.items():
            setattr(sys, name, stream)


class _Guarded:
    """A text stream whose file is replaced by /dev/null when a write fails."""

    def __init__(self, stream: io.TextIOWrapper, raises: bool):
        self._stream = stream
        self._raises = raises
        self._escapes = raises and stream.isatty()  # not standard error: progress bars move the cursor

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
            # what is still buffered goes there too; otherwise Python complains of it when it exits
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
            if self._raises:
                raise OSError(error.errno, error.strerror, NAME) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
