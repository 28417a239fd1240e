"""The folder of a run's checkpoints: names them, finds the newest, and removes old and interrupted ones."""

import contextlib
import re
from pathlib import Path

from mindpangu.checkpoint.manifest import ITERATION, MANIFEST
from mindpangu.errors import InUseError
from mindpangu.files import delete, write_text_atomically
from mindpangu.locks import clear_leftovers, locked, scratch_path, unique_name
from mindpangu.untrusted import read_bytes

_INTERRUPTED = re.compile(r"\.(iteration_\d{8,})\.(?:writing|deleting)")


def iteration_folder(parent: Path, step: int) -> Path:
    """Returns the path of the checkpoint of a step."""
    return parent / f"iteration_{step:08d}"


def is_complete(folder: Path) -> bool:
    """True if a folder is a complete checkpoint."""
    return (folder / MANIFEST).is_file()


def is_iteration(path: Path) -> bool:
    """True if a path is named like a checkpoint."""
    return ITERATION.fullmatch(path.name) is not None


def list_iterations(parent: Path) -> list[Path]:
    """Lists complete checkpoints, oldest first. A folder gets its name only once everything in it is on disk."""
    return [path for path in _named_iterations(parent) if is_complete(path)]


def incomplete_iterations(parent: Path) -> list[Path]:
    """Lists folders that are named like checkpoints after the newest complete one but have no manifest, oldest first.

    No interruption leaves such a folder behind: its manifest was removed, or it was copied incompletely.
    """
    incomplete: list[Path] = []
    for path in _named_iterations(parent):
        incomplete = [] if is_complete(path) else [*incomplete, path]
    return [path for path in incomplete if path.exists()]  # without those that were pruned meanwhile


def _named_iterations(parent: Path) -> list[Path]:
    found = {}
    for path in parent.glob("iteration_*"):
        match = ITERATION.fullmatch(path.name)
        if match and path == iteration_folder(parent, int(match[1])):
            found[int(match[1])] = path
    return [found[step] for step in sorted(found)]


def latest_iteration(parent: Path) -> Path | None:
    """Returns the newest complete checkpoint, if there is one."""
    iterations = list_iterations(parent)
    return iterations[-1] if iterations else None


def checkpoints_sharing(folder: Path, name: str) -> list[Path]:
    """Lists the other complete checkpoints next to `folder` whose file `name` is the same file on disk (a hard link),
    oldest first."""
    return [
        other
        for other in list_iterations(folder.parent)
        if other != folder and _is_same_file(other / name, folder / name)
    ]


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is missing, or has just been pruned
        return False


def prune(parent: Path, keep_last: int, written: Path | None = None) -> list[Path]:
    """Removes all but the newest `keep_last` checkpoints. Returns the removed ones.

    Args:
        written: the checkpoint that was just written. It is kept even if the names of others have later steps.
    """
    others = [path for path in list_iterations(parent) if path != written]
    num_kept = keep_last if written is None else keep_last - 1
    old = others[: max(len(others) - num_kept, 0)]
    for path in old:
        remove(path)
    return old


def finish_publishing(parent: Path, pointer: Path, keep_last: int, written: Path | None = None) -> None:
    """Writes the step of the newest checkpoint to the file `pointer`, then removes the oldest ones (`prune`)."""
    newest = latest_iteration(parent)
    match = ITERATION.fullmatch(newest.name) if newest is not None else None
    if match is not None:
        text = f"{int(match[1])}\n"
        if not _holds(pointer, text):
            write_text_atomically(pointer, text)
    prune(parent, keep_last, written)


def _holds(pointer: Path, text: str) -> bool:
    """True if a file holds exactly this text; False if it is missing or unreadable, so that it is written again."""
    try:
        return read_bytes(pointer, len(text)) == text.encode()
    except (OSError, ValueError):
        return False


def remove(path: Path) -> None:
    """Removes a checkpoint. Renames it first, so that an interruption leaves no incomplete folder under its name."""
    doomed = scratch_path(path, unique_name(), "deleting")
    try:
        path.rename(doomed)
    except FileNotFoundError:  # another process has removed it
        return
    delete(doomed)


def clean_interrupted(parent: Path) -> None:
    """Removes folders that killed processes left half-written or half-deleted; those of live processes stay."""
    clear_leftovers(parent)
    for path in parent.glob(".iteration_*"):  # as earlier versions named them
        match = _INTERRUPTED.fullmatch(path.name)
        if match:
            with contextlib.suppress(InUseError), locked(parent / match[1], wait=0):
                pass
