"""Repeats work that failed because a training pruned the checkpoint that the work was reading.

    retry_if_pruned(lambda: load_model(CheckpointReader(run_folder)))     reads the newest checkpoint again

Readers do not lock checkpoints: the file system may have no locks, and nobody knows when a reader is done. So any file
of a checkpoint may vanish between two accesses. Every `CheckpointReader` is noted here when it opens a checkpoint. If
the work fails and one of the checkpoints that it opened is gone, the removal is taken to be the reason.
"""

from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol, TypeVar

from mindpangu.errors import CheckpointError, MindPanguError

MAX_TRIES = 5
"""Number of attempts before giving up because the training prunes faster than its checkpoints can be read."""

Result = TypeVar("Result")


class OpenedCheckpoint(Protocol):
    """A checkpoint that was opened for reading; `CheckpointReader` is one.

    Attributes:
        folder: folder of the checkpoint.
        named_explicitly: True if the user named this very checkpoint, False if it was the newest one of a folder.
    """

    folder: Path
    named_explicitly: bool

    def was_removed(self) -> bool: ...


_opened: ContextVar[list[OpenedCheckpoint] | None] = ContextVar("checkpoints opened by the current work", default=None)


def note_opened_checkpoint(reader: OpenedCheckpoint) -> None:
    """Notes that the work inside `retry_if_pruned`, if any, reads a checkpoint."""
    opened = _opened.get()
    if opened is not None:
        opened.append(reader)


def forget_opened_checkpoints() -> None:
    """Notes that the work has read everything that it needs, so that no later error is blamed on pruning."""
    opened = _opened.get()
    if opened is not None:
        opened.clear()


def retry_if_pruned(work: Callable[[], Result], log: Callable[[str], None] = print) -> Result:
    """Calls `work` and returns its result. Calls it again if it fails because a checkpoint that it read was removed.

    Raises:
        CheckpointError: the user named the checkpoint that was removed, or `MAX_TRIES` attempts have failed.
    """
    for tries_left in reversed(range(MAX_TRIES)):
        opened: list[OpenedCheckpoint] = []
        token = _opened.set(opened)
        try:
            return work()
        except (MindPanguError, OSError) as error:
            removed = [reader for reader in opened if reader.was_removed()]
            if not removed:
                raise
            named = next((reader for reader in removed if reader.named_explicitly), None)
            if named is not None:
                raise CheckpointError(
                    f"{named.folder} was removed while it was being read; a training keeps only its newest "
                    "checkpoints (checkpoint.keep_last). Name the run folder to read the newest, or read a copy"
                ) from error
            folder = removed[0].folder
            if not tries_left:
                raise CheckpointError(
                    f"{folder} was removed while it was being read, as were {MAX_TRIES - 1} before it: the training "
                    "prunes them faster than they can be read. Raise its checkpoint.keep_last, or read a copy"
                ) from error
            log(f"{folder} was removed while it was being read; reading the newest checkpoint instead")
        finally:
            _opened.reset(token)
    raise AssertionError("the last try returns or raises")
