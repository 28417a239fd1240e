"""Reading a run while its training prunes: work that fails because a checkpoint was removed is done again.

    retry_if_pruned(lambda: load_model(CheckpointReader(run_folder)))     takes the newest checkpoint again

A checkpoint is never locked: it may lie on a file system without locks, and nobody knows when a reader ends. So any
file of it may vanish between two accesses, wherever they are. `CheckpointReader` notes here that it was opened; if work
fails, and a checkpoint that it opened is gone, then that is the reason.
"""

from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol, TypeVar

from mindpangu.errors import CheckpointError, MindPanguError

TRIES = 5
"""How often work is done before it is given up: training prunes faster than it can be read."""

Result = TypeVar("Result")


class Opened(Protocol):
    """A checkpoint that was opened.

    Attributes:
        folder: the checkpoint.
        was_named: True if the user named this very checkpoint, False if it was the newest one of a folder.
    """

    folder: Path
    was_named: bool

    def is_gone(self) -> bool: ...


_opened: ContextVar[list[Opened] | None] = ContextVar("checkpoints opened by the work in hand", default=None)


def note_opened(reader: Opened) -> None:
    """Notes that the work in hand, if any, reads a checkpoint."""
    opened = _opened.get()
    if opened is not None:
        opened.append(reader)


def forget_opened() -> None:
    """Notes that the work in hand has read all that it needs: later errors have other reasons."""
    opened = _opened.get()
    if opened is not None:
        opened.clear()


def retry_if_pruned(work: Callable[[], Result], log: Callable[[str], None] = print) -> Result:
    """Returns what `work` returns. If it fails because a checkpoint was removed while it was read, calls it again.

    Raises:
        CheckpointError: the user named the checkpoint that was removed, or it happened `TRIES` times in a row.
    """
    for tries_left in reversed(range(TRIES)):
        opened: list[Opened] = []
        token = _opened.set(opened)
        try:
            return work()
        except (MindPanguError, OSError) as error:
            gone = [reader for reader in opened if reader.is_gone()]
            if not gone:
                raise
            named = next((reader for reader in gone if reader.was_named), None)
            if named is not None:
                raise CheckpointError(
                    f"{named.folder} was removed while it was read; a training keeps only its checkpoint.keep_last "
                    "newest ones. Give the run folder to read the newest, or read a copy"
                ) from error
            if not tries_left:
                raise CheckpointError(
                    f"{gone[0].folder} was removed while it was read, as {TRIES - 1} were before it: the training "
                    "prunes them faster than they can be read. Raise its checkpoint.keep_last, or read a copy"
                ) from error
            log(f"{gone[0].folder} was removed while it was read; reading the newest checkpoint instead")
        finally:
            _opened.reset(token)
    raise AssertionError("the last try returns or raises")
