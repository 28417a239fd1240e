"""Writes a checkpoint: hashes and fsyncs every file in a scratch folder, then publishes the folder with one rename."""

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

from mindpangu.checkpoint.directory import iteration_folder, remove
from mindpangu.checkpoint.fingerprint import Entry, Fingerprint
from mindpangu.checkpoint.manifest import MANIFEST, encode_manifest
from mindpangu.checkpoint.reader import CheckpointReader
from mindpangu.errors import CheckpointError
from mindpangu.files import Buffer, fsync_folder, read_chunks, write_durably


class CheckpointWriter:
    """Context manager that writes one checkpoint, which appears under its name only once everything is on disk.

        with CheckpointWriter(run.checkpoints, step=200) as writer:
            writer.write("state.json", data)

    If there are several ranks, each has a writer for the same checkpoint and writes its own files. Rank 0 waits until
    the others have written theirs and publishes the checkpoint; the others wait for that.

    `write`, `link` and `cancel` may be called from several threads.

    Args:
        parent: the folder of a run's checkpoints; all ranks see the same one.
        rank, ranks: rank of this process, and the number of ranks.
        timeout: seconds that a rank waits for the others once it has written its own files.

    Raises:
        CheckpointError: the disk is full or cannot be written, or the checkpoint was cancelled; earlier checkpoints are
            untouched.
    """

    def __init__(self, parent: Path, step: int, rank: int = 0, ranks: int = 1, timeout: float = 1800.0):
        self.parent = parent
        self.step = step
        self.rank = rank
        self.ranks = ranks
        self.timeout = timeout
        self.folder = iteration_folder(parent, step)
        self.scratch = parent / f".{self.folder.name}.writing"
        self._files: dict[str, Entry] = {}
        self._lock = threading.Lock()
        self._cancelled = False

    def require_space(self, num_bytes: int) -> None:
        """Raises CheckpointError if the disk cannot take `num_bytes` more."""
        free = shutil.disk_usage(self.parent).free
        if num_bytes > free:
            raise CheckpointError(
                f"{self.folder} needs {num_bytes / 1e6:.0f} MB, but the disk has {free / 1e6:.0f} MB left; free some, "
                "or lower checkpoint.keep_last; earlier checkpoints are untouched"
            )

    def cancel(self) -> None:
        """Makes the next `write` fail, so that no checkpoint is published."""
        self._cancelled = True

    def write(self, name: str, data: bytes | Iterable[Buffer]) -> Entry:
        """Writes one file of the checkpoint.

        Args:
            name: path relative to the checkpoint.
            data: the content, in one piece or several.

        Returns:
            Its entry in the manifest.
        """
        if self._cancelled:
            raise CheckpointError(f"checkpoint {self.folder} was abandoned; earlier checkpoints are untouched")
        path = self.scratch / name
        fingerprint = Fingerprint()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, fingerprint.through([data] if isinstance(data, bytes) else data))
        except OSError as error:
            raise self._failure(error) from None
        self._add(name, fingerprint.entry())
        return fingerprint.entry()

    def link(self, name: str, from_folder: Path, entry: Entry) -> bool:
        """Adds a file of an earlier checkpoint as a hard link.

        Checks its hash first, so that damage does not spread to new checkpoints.

        Args:
            from_folder: the earlier checkpoint.
            entry: the file's entry in that checkpoint's manifest.

        Returns:
            False if the file cannot be linked: it is on another file system or one without links, or it is missing or
            altered. Then nothing exists under this name, and the caller must write it.
        """
        source = from_folder / name
        path = self.scratch / name
        try:
            if Fingerprint.from_chunks(read_chunks(source)) != entry:
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, path)
        except OSError:
            return False
        self._add(name, dict(entry))
        return True

    def take(self, name: str, reader: CheckpointReader) -> None:
        """Adds a file of another checkpoint with its manifest entry, as a hard link or, if that fails, as a copy.

        Checks the size of the file but not its hash, which its readers compare with the manifest entry.
        """
        source = reader.folder / name
        path = self.scratch / name
        if not source.exists() or source.stat().st_size != reader.files[name]["bytes"]:
            reader.verify(name)  # raises an error with the reason
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, path)
            except OSError:
                write_durably(path, read_chunks(source))
        except OSError as error:
            raise self._failure(error) from None
        self._add(name, dict(reader.files[name]))

    def __enter__(self) -> "CheckpointWriter":
        try:
            if self.ranks == 1:
                shutil.rmtree(
                    self.scratch, ignore_errors=True
                )  # with several ranks it may already hold another rank's files
            self.scratch.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._failure(error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self._report_failure(str(error) or kind.__name__)
            elif self.rank == 0:
                self._collect()
                self._publish()
            else:
                self._report_files()
        except OSError as failure:
            self._report_failure(str(failure))
            raise self._failure(failure) from None
        finally:
            if self.rank == 0:
                shutil.rmtree(self.scratch, ignore_errors=True)

    def _add(self, name: str, entry: Entry) -> None:
        with self._lock:
            self._files[name] = entry

    def _report_files(self) -> None:
        """Tells rank 0 which files this rank has written, and waits until rank 0 has published the checkpoint."""
        # The list is renamed into place, so a reader never sees half of it. Rank 0 may publish the folder as soon as it
        # sees the last list, so nothing here may touch the folder after the rename.
        written = self.scratch / f".written_{self.rank:05d}"
        unfinished = written.with_suffix(".part")
        write_durably(unfinished, json.dumps(self._files).encode())
        unfinished.rename(written)
        self._wait_until(lambda: not self.scratch.exists(), "rank 0 to publish it")
        if not (self.folder / MANIFEST).exists():
            raise CheckpointError(f"checkpoint {self.folder} was not published; see the message of rank 0")

    def _collect(self) -> None:
        """Waits until the other ranks have written their files, and adds their files to the manifest."""
        for rank in range(1, self.ranks):
            written = self.scratch / f".written_{rank:05d}"
            self._wait_until(written.exists, f"rank {rank}")
            for name, entry in json.loads(written.read_bytes()).items():
                self._add(name, entry)
            written.unlink()

    def _wait_until(self, condition: Callable[[], bool], awaited: str) -> None:
        deadline = time.monotonic() + self.timeout
        while not condition():
            with contextlib.suppress(FileNotFoundError):  # rank 0 may publish the folder at any moment
                for failed in self.scratch.glob(".failed_*"):
                    rank = int(failed.name.removeprefix(".failed_"))
                    raise CheckpointError(
                        f"checkpoint {self.folder}: rank {rank} could not write: {failed.read_text('utf-8')}"
                    )
            if self._cancelled or time.monotonic() > deadline:
                why = "it was abandoned" if self._cancelled else f"{self.timeout:.0f} s were not enough"
                raise CheckpointError(f"checkpoint {self.folder} waited for {awaited}, but {why}")
            time.sleep(0.02)

    def _report_failure(self, why: str) -> None:
        """Tells the other ranks that this one could not write its files."""
        if self.ranks > 1:
            with contextlib.suppress(OSError):
                (self.scratch / f".failed_{self.rank:05d}").write_text(why, "utf-8", "backslashreplace")

    def _publish(self) -> None:
        write_durably(self.scratch / MANIFEST, encode_manifest(self.step, self._files))
        for folder in (self.scratch, *(path for path in self.scratch.rglob("*") if path.is_dir())):
            fsync_folder(folder)
        if self.folder.exists():
            remove(self.folder)
        self.scratch.rename(self.folder)
        fsync_folder(self.parent)

    def _failure(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"checkpoint {self.folder} cannot be written: {error.strerror or error}; "
            "free disk space or choose another folder (training.output_dir, --out); earlier checkpoints are untouched"
        )
