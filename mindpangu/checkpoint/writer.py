"""Writes a checkpoint: hashes and fsyncs every file in a scratch folder, then publishes the folder with one rename."""

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import TracebackType

from mindpangu.checkpoint.directory import iteration_folder
from mindpangu.checkpoint.fingerprint import Entry, Fingerprint
from mindpangu.checkpoint.manifest import MANIFEST, encode_manifest
from mindpangu.checkpoint.rank_reports import AnotherRankFailed, RankReports
from mindpangu.checkpoint.reader import CheckpointReader
from mindpangu.errors import CheckpointError
from mindpangu.files import Buffer, file_chunks, fsync_folder, link_or_copy, replace_folder, write_durably
from mindpangu.locks import locked, scratch_path, unique_name
from mindpangu.untrusted import inside, open_file

_SLACK_S = 1.0
_POLL_S = (0.02, 0.5)  # first and longest pause between two checks; hundreds of ranks may poll a shared disk


class CheckpointWriter:
    """Context manager that writes one checkpoint, which appears under its name only once everything is on disk.

        with CheckpointWriter(run.checkpoints, step=200) as writer:
            writer.write("state.json", data)

    If there are several ranks, each has a writer for the same checkpoint and writes its own files. Rank 0 waits until
    the others have written theirs and publishes the checkpoint; the others wait for that. If one rank fails, all fail,
    with its reason in their messages (`rank_reports.py`).

    `write`, `link` and `cancel` may be called from several threads.

    Args:
        parent: the folder of a run's checkpoints; all ranks see the same one. It is created if it does not exist, and
            removed again if it is empty at the end.
        rank, ranks: rank of this process, and the number of ranks.
        timeout: seconds that a rank waits for the others once it has written its own files.
        job: with several ranks, a name that only these ranks share (`Processes.draw_shared_name`).

    Raises:
        InUseError: another process is writing the same checkpoint.
        CheckpointError: the disk is full or cannot be written, or the checkpoint was cancelled; earlier checkpoints are
            untouched.
    """

    def __init__(
        self, parent: Path, step: int, rank: int = 0, ranks: int = 1, timeout: float = 1800.0, job: str | None = None
    ):
        assert job or ranks == 1, "the ranks need a name for their scratch folder"
        self.parent = parent
        self.step = step
        self.rank = rank
        self.ranks = ranks
        self.timeout = timeout
        self.folder = iteration_folder(parent, step)
        self.scratch = scratch_path(self.folder, job or unique_name())
        self._job = job
        self._reports = RankReports(self.folder, self.scratch, rank, ranks)
        self._files: dict[str, Entry] = {}
        self._lock = threading.Lock()
        self._cancelled = False
        self._folder_lock = contextlib.ExitStack()

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
        fingerprint = Fingerprint()
        try:
            write_durably(self._place(name), fingerprint.through([data] if isinstance(data, bytes) else data))
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
            False if the file cannot be linked: it is on another file system or one without links, or it is missing,
            altered, or no regular file. Then nothing exists under this name, and the caller must write it.
        """
        try:
            with open_file(inside(from_folder, name)) as file:
                if Fingerprint.from_chunks(file_chunks(file)) != entry:
                    return False
            os.link(from_folder / name, self._place(name))
        except FileExistsError as error:
            raise self._failure(error) from None
        except (OSError, ValueError):
            return False
        self._add(name, dict(entry))
        return True

    def take(self, name: str, reader: CheckpointReader) -> None:
        """Adds a file of another checkpoint with its manifest entry, as a hard link or, if that fails, as a copy.

        Checks the size of the file but not its hash, which its readers compare with the manifest entry.
        """
        source = reader.require_size(name)
        try:
            link_or_copy(source, self._place(name))
        except OSError as error:
            raise self._failure(error) from None
        self._add(name, dict(reader.files[name]))

    def __enter__(self) -> "CheckpointWriter":
        try:
            if self.rank == 0:
                self._folder_lock.enter_context(locked(self.folder, keep=self._job))
            self.scratch.mkdir(parents=True, exist_ok=True)  # another rank may have created it
            self._reports.raise_failure()
        except BaseException as error:
            raise self._leave(error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self._leave(error)
                return
            if self.rank == 0:
                self._collect()
                self._publish()
            else:
                self._report_files()
        except BaseException as failure:
            raise self._leave(failure) from None
        finally:
            self._folder_lock.close()

    def _leave(self, error: BaseException) -> BaseException:
        """Cleans up and tells the other ranks that this one failed. Returns the error for the user."""
        failure = self._failure(error) if isinstance(error, OSError) else error
        self._reports.leave(failure)
        self._folder_lock.close()
        return failure

    def _place(self, name: str) -> Path:
        """Returns the path of a new file in the scratch folder, after creating its folder."""
        path = self.scratch / name
        path.parent.mkdir(exist_ok=True)
        return path

    def _add(self, name: str, entry: Entry) -> None:
        with self._lock:
            self._files[name] = entry

    def _report_files(self) -> None:
        """Tells rank 0 which files this rank has written, and waits until rank 0 has published the checkpoint."""
        self._reports.report_written(self._files)
        # longer than rank 0 waits, because rank 0 can say which rank is late
        timeout = 1.1 * self.timeout + _SLACK_S
        self._wait_until(lambda: not self.scratch.exists(), "rank 0 to publish it", timeout)
        if not (self.folder / MANIFEST).exists():
            raise AnotherRankFailed(f"checkpoint {self.folder} was not published; see the message of rank 0")

    def _collect(self) -> None:
        """Waits until the other ranks have written their files, and adds their files to the manifest."""
        for rank in range(1, self.ranks):
            self._wait_until(partial(self._reports.has_written, rank), f"rank {rank}", self.timeout)
            for name, entry in self._reports.pop_written(rank).items():
                self._add(name, entry)

    def _wait_until(self, condition: Callable[[], bool], awaited: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        pause, longest = _POLL_S
        while not condition():
            self._reports.raise_failure()
            if self._cancelled or time.monotonic() > deadline:
                why = "it was abandoned" if self._cancelled else f"{timeout:.0f} s were not enough"
                raise CheckpointError(f"checkpoint {self.folder} waited for {awaited}, but {why}")
            time.sleep(pause)
            pause = min(1.2 * pause, longest)

    def _publish(self) -> None:
        write_durably(self.scratch / MANIFEST, encode_manifest(self.step, self._files))
        for folder in (self.scratch, *(path for path in self.scratch.rglob("*") if path.is_dir())):
            fsync_folder(folder)
        replace_folder(self.scratch, self.folder)

    def _failure(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"checkpoint {self.folder} cannot be written: {error.strerror or error}; "
            "free disk space or choose another folder (training.output_dir, --out); earlier checkpoints are untouched"
        )
