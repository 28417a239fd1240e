"""Writing a checkpoint: every file beside its place, hashed and fsynced, then one rename."""

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from mindpangu.checkpoint.directory import MANIFEST, iteration_folder, remove
from mindpangu.checkpoint.durable import sync_folder, write_durably
from mindpangu.checkpoint.fingerprint import Entry, Fingerprint, read_chunks
from mindpangu.errors import CheckpointError

if TYPE_CHECKING:  # the reader needs the format version from here
    from mindpangu.checkpoint.reader import CheckpointReader

FORMAT_VERSION = 1


class CheckpointWriter:
    """Context manager that makes one checkpoint; nothing appears under its name unless everything is on disk.

        with CheckpointWriter(run.checkpoints, step=200) as writer:
            writer.write("state.json", data)

    With several ranks each has a writer of the same checkpoint, and writes files of its own. The first one waits for
    what the others have written, and publishes all of it; they wait for that.

    `write`, `link` and `cancel` may be called from several threads.

    Args:
        parent: the folder of a run's checkpoints; all ranks see the same one.
        rank, ranks: of this process.
        timeout: seconds that a rank waits for the others, once it has written its own files.

    Raises:
        CheckpointError: the disk is full or cannot be written, or it was cancelled; earlier checkpoints are untouched.
    """

    def __init__(self, parent: Path, step: int, rank: int = 0, ranks: int = 1, timeout: float = 1800.0):
        self.parent, self.step, self.rank, self.ranks, self.timeout = parent, step, rank, ranks, timeout
        self.folder = iteration_folder(parent, step)
        self.scratch = parent / f".{self.folder.name}.writing"
        self._files: dict[str, Entry] = {}
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

    def write(self, name: str, data: bytes | Iterable[bytes]) -> Entry:
        """Writes one file, `name` relative to the checkpoint, from its content or from pieces of it.

        Returns:
            Its entry in the manifest.
        """
        if self._cancelled:
            raise CheckpointError(f"checkpoint {self.folder} was given up; earlier checkpoints are untouched")
        path, fingerprint = self.scratch / name, Fingerprint()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, fingerprint.through([data] if isinstance(data, bytes) else data))
        except OSError as error:
            raise self._failure(error) from None
        self._add(name, fingerprint.entry())
        return fingerprint.entry()

    def link(self, name: str, from_folder: Path, entry: Entry) -> bool:
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
            if Fingerprint.from_chunks(read_chunks(source)) != entry:
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, path)
        except OSError:
            return False
        self._add(name, dict(entry))
        return True

    def take(self, name: str, reader: "CheckpointReader") -> None:
        """Takes over a file of another checkpoint with its entry in the manifest: linked, or else copied.

        Its size is compared, its hash is not: whoever reads the file does that, by the entry that comes with it.
        """
        source, path = reader.folder / name, self.scratch / name
        if not source.exists() or source.stat().st_size != reader.files[name]["bytes"]:
            reader.verify(name)  # says what is wrong
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
                shutil.rmtree(self.scratch, ignore_errors=True)  # otherwise it may have another rank's files already
            self.scratch.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._failure(error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self._tell_failure(str(error) or kind.__name__)
            elif self.rank == 0:
                self._collect()
                self._publish()
            else:
                self._hand_over()
        except OSError as failure:
            self._tell_failure(str(failure))
            raise self._failure(failure) from None
        finally:
            if self.rank == 0:
                shutil.rmtree(self.scratch, ignore_errors=True)

    def _add(self, name: str, entry: Entry) -> None:
        with self._lock:
            self._files[name] = entry

    def _hand_over(self) -> None:
        """Tells the first rank what is written, and waits until it has published it."""
        # the list itself is renamed into its place: whoever sees it sees all of it
        written = self.scratch / f".written_{self.rank:05d}"
        write_durably(written.with_suffix(".part"), json.dumps(self._files).encode())
        written.with_suffix(".part").rename(written)
        self._wait(lambda: not self.scratch.exists(), "rank 0 to publish it")
        if not (self.folder / MANIFEST).exists():
            raise CheckpointError(f"checkpoint {self.folder} was not published; rank 0 says why")

    def _collect(self) -> None:
        """Waits for what the other ranks have written."""
        for rank in range(1, self.ranks):
            written = self.scratch / f".written_{rank:05d}"
            self._wait(written.exists, f"rank {rank}")
            for name, entry in json.loads(written.read_bytes()).items():
                self._add(name, entry)
            written.unlink()

    def _wait(self, there: Callable[[], bool], whom: str) -> None:
        until = time.monotonic() + self.timeout
        while not there():
            with contextlib.suppress(FileNotFoundError):  # the first rank may publish the folder at any moment
                for failed in self.scratch.glob(".failed_*"):
                    rank = int(failed.name.removeprefix(".failed_"))
                    raise CheckpointError(
                        f"checkpoint {self.folder}: rank {rank} could not write: {failed.read_text()}"
                    )
            if self._cancelled or time.monotonic() > until:
                why = "it was given up" if self._cancelled else f"{self.timeout:.0f} s were not enough"
                raise CheckpointError(f"checkpoint {self.folder} waited for {whom}, and {why}")
            time.sleep(0.02)

    def _tell_failure(self, why: str) -> None:
        if self.ranks > 1:
            with contextlib.suppress(OSError):
                (self.scratch / f".failed_{self.rank:05d}").write_text(why)

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
            "free disk space or choose another folder (training.output_dir, --out); earlier checkpoints are untouched"
        )
