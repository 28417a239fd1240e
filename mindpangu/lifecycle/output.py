"""Output folders: results are written completely or not at all, and never overwrite existing ones."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mindpangu.checkpoint import incomplete_iterations, latest_iteration
from mindpangu.errors import CheckpointError
from mindpangu.files import scratch_folder
from mindpangu.locks import checkpoint_around, clear_leftovers, locked


def require_free(out: Path) -> None:
    """Raises CheckpointError if `out` is a file, lies in a checkpoint, or holds checkpoints, as a run folder does."""
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file; --out needs the name of a folder")
    inside = checkpoint_around(out / "a name")  # `out` itself may be the checkpoint
    if inside is not None:
        raise CheckpointError(f"{out} is in the checkpoint {inside.name}, which stays as it is; choose another --out")
    existing = latest_iteration(out) or latest_iteration(out / "checkpoint")
    if existing is not None:
        raise CheckpointError(f"{out} already has a checkpoint ({existing.name}); choose another --out, or remove it")
    damaged = incomplete_iterations(out) or incomplete_iterations(out / "checkpoint")
    if damaged:
        raise CheckpointError(
            f"{out} has a checkpoint without manifest.json ({damaged[-1].name}); choose another --out, or remove it"
        )


@contextmanager
def locked_output(out: Path) -> Iterator[None]:
    """Locks `out` inside the block, in which a checkpoint is written into it. `out` need not exist.

    Raises:
        InUseError: another process is writing to `out`.
        CheckpointError: `out` is not free (`require_free`), or the disk is full or not writable.
    """
    require_free(out)  # before locking, because no lock may appear inside a checkpoint
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(out))
        except OSError as error:
            raise _failure(out, error) from None
        clear_leftovers(out.parent)
        clear_leftovers(out)
        require_free(out)
        yield


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yields a scratch folder next to `out`. Renames it to `out` on success; deletes it on error.

    Raises:
        InUseError: another process is writing `out`.
        CheckpointError: `out` is not free (`require_free`) or not empty, or the disk is full or not writable.
    """
    with locked_output(out):
        if out.exists() and any(out.iterdir()):
            raise CheckpointError(f"{out} exists and is not empty; choose another --out, or remove it")
        try:
            with scratch_folder(out) as scratch:
                yield scratch
        except OSError as error:
            raise _failure(out, error) from None


def _failure(out: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{out} cannot be written: {error.strerror or error}; free disk space or choose another --out"
    )
