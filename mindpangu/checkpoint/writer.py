"""Writing a checkpoint: every file beside its place, hashed and fsynced, then one rename."""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from mindpangu.checkpoint.directory import MANIFEST, iteration_folder, remove
from mindpangu.checkpoint.durable import sync_folder, write_durably
from mindpangu.errors import CheckpointError

FORMAT_VERSION = 1


def matches(data: bytes, entry: Mapping[str, int | str]) -> bool:
    """Whether a file's content is what its manifest entry says."""
    return len(data) == entry["bytes"] and hashlib.blake2b(data, digest_size=16).hexdigest() == entry["blake2b"]


class CheckpointWriter:
    """Context manager that makes one checkpoint; nothing appears under its name unless everything is on disk.

        with CheckpointWriter(run.checkpoints, step=200) as writer:
            writer.write("state.json", data)

    `write`, `link` and `cancel` may be called from several threads.

    Raises:
        CheckpointError: the disk is full or cannot be written, or it was cancelled; earlier checkpoints are untouched.
    """

    def __init__(self, parent: Path, step: int):
        self.parent, self.step = parent, step
        self.folder = iteration_folder(parent, step)
        self.scratch = parent / f".{self.folder.name}.writing"
        self._files: dict[str, dict[str, int | str]] = {}
        self._lock = threading.Lock()
        self._cancelled = False

    def require_space(self, num_bytes: int) -> None:
        """Refuses early when the disk cannot take `num_bytes` more."""
        free = shutil.disk_usage(self.parent).free
        if num_bytes > free:
            raise CheckpointError(
                f"{self.folder} needs {num_bytes / 1e6:.0f} MB, but the disk has {free / 1e6:.0f} MB left; free some, "
                "or lower checkpoint.keep_last; earlier checkpoints are untouched"
            )

    def cancel(self) -> None:
        """Makes the next `write` fail, so that the checkpoint is not made."""
        self._cancelled = True

    def write(self, name: str, data: bytes) -> None:
        """Writes one file, `name` relative to the checkpoint."""
        if self._cancelled:
            raise CheckpointError(f"checkpoint {self.folder} was given up; earlier checkpoints are untouched")
        path = self.scratch / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, data)
        except OSError as error:
            raise self._failure(error) from None
        self._add(name, {"bytes": len(data), "blake2b": hashlib.blake2b(data, digest_size=16).hexdigest()})

    def link(self, name: str, from_folder: Path, entry: Mapping[str, int | str]) -> bool:
        """Takes over a file of an earlier checkpoint, as a second name of the same file on disk.

        Its hash is checked first: damage must not travel into checkpoints that could still be whole.

        Args:
            from_folder: the earlier checkpoint. entry: what its manifest says of the file.

        Returns:
            False if this cannot be: another file system, one without links, a file that is gone or was altered.
            Then nothing is there under this name, and it must be written.
        """
        source, path = from_folder / name, self.scratch / name
        try:
            if not matches(source.read_bytes(), entry):
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, path)
        except OSError:
            return False
        self._add(name, dict(entry))
        return True

    def __enter__(self) -> "CheckpointWriter":
        try:
            shutil.rmtree(self.scratch, ignore_errors=True)
            self.scratch.mkdir(parents=True)
        except OSError as error:
            raise self._failure(error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._publish()
        except OSError as failure:
            raise self._failure(failure) from None
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _add(self, name: str, entry: dict[str, int | str]) -> None:
        with self._lock:
            self._files[name] = entry

    def _publish(self) -> None:
        manifest = {"format_version": FORMAT_VERSION, "step": self.step, "files": dict(sorted(self._files.items()))}
        write_durably(self.scratch / MANIFEST, json.dumps(manifest, indent=1).encode())
        for folder in (self.scratch, *(path for path in self.scratch.rglob("*") if path.is_dir())):
            sync_folder(folder)
        if self.folder.exists():
            remove(self.folder)
        self.scratch.rename(self.folder)
        sync_folder(self.parent)

    def _failure(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"checkpoint {self.folder} cannot be written: {error.strerror or error}; "
            "free disk space or change training.output_dir; earlier checkpoints are untouched"
        )
