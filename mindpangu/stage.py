"""A stage of the main job: a folder built from inputs, skipped when nothing that went into it has changed.

A stage writes into a folder beside the final one, which takes its place only when everything is there, so an
interrupted stage leaves nothing half-written. The file `stage.json` in the folder records what went in.
"""

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mindpangu.errors import StageError

STAMP = "stage.json"


class Stage:
    """One folder and the inputs it is made from.

        with stage.locked():
            if not stage.is_current():
                with stage.building() as folder: ...

    Args:
        folder: where the output belongs.
        inputs: JSON-able description of everything that decides the output (settings, hashes of input files).
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Any]):
        self.folder = folder
        self.inputs = json.loads(json.dumps(inputs))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Two processes that want the same stage take turns; the second one then finds it done."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            lock = open(self.folder.with_name(f".{self.folder.name}.lock"), "a")  # noqa: SIM115 - closed below
        except OSError as error:
            raise self._failure(error) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def is_current(self) -> bool:
        """True when the folder was built from these inputs and every file in it is still as it was written."""
        stamp = read_json_object(self.folder / STAMP)
        files = stamp.get("files")
        return (
            stamp.get("inputs") == self.inputs
            and isinstance(files, dict)
            and all((self.folder / name).is_file() for name in files)
            and all(hash_files([self.folder / name]) == digest for name, digest in files.items())
        )

    def has_other_inputs(self) -> bool:
        """True when the folder is there and says that it was built from something else."""
        stamp = read_json_object(self.folder / STAMP)
        return "inputs" in stamp and stamp["inputs"] != self.inputs

    @contextlib.contextmanager
    def building(self) -> Iterator[Path]:
        """Yields an empty folder to write into; on success it replaces the stage's folder.

        Raises:
            StageError: the disk is full or cannot be written.
        """
        scratch = self.folder.with_name(f".{self.folder.name}.building")
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            yield scratch
            written = sorted(path for path in scratch.rglob("*") if path.is_file())
            files = {str(path.relative_to(scratch)): hash_files([path]) for path in written}
            (scratch / STAMP).write_text(json.dumps({"inputs": self.inputs, "files": files}, indent=1))
            shutil.rmtree(self.folder, ignore_errors=True)
            scratch.rename(self.folder)
        except OSError as error:
            raise self._failure(error) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _failure(self, error: OSError) -> StageError:
        return StageError(
            f"{self.folder} cannot be written: {error.strerror or error}; "
            "free disk space or change training.output_dir; what was there before is untouched"
        )


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file is absent, unreadable or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def hash_files(paths: Iterable[Path]) -> str:
    """BLAKE2 hash over the contents of files, in the order given; their names do not count."""
    total = hashlib.blake2b(digest_size=16)
    for path in paths:
        digest = hashlib.blake2b(digest_size=16)
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        total.update(digest.digest())
    return total.hexdigest()


def link_folder(source: Path, target: Path) -> None:
    """Copies a folder of files that never change: by hard links where the file system has them."""

    def link(one: str, other: str) -> None:
        try:
            Path(other).hardlink_to(one)
        except OSError:
            shutil.copy2(one, other)

    scratch = target.with_name(f".{target.name}.writing")
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(source, scratch, copy_function=link)
    scratch.rename(target)


class ResultFile:
    """A stage whose whole output is one JSON file, `inputs` included."""

    def __init__(self, path: Path, inputs: Mapping[str, Any]):
        self.path = path
        self.inputs = json.loads(json.dumps(inputs))

    def is_current(self) -> bool:
        return read_json_object(self.path).get("inputs") == self.inputs

    def write(self, result: Mapping[str, Any]) -> None:
        scratch = self.path.with_name(f".{self.path.name}.building")
        text = json.dumps({"inputs": self.inputs, **result}, indent=1, ensure_ascii=False)
        scratch.write_text(text + "\n", encoding="utf-8")
        scratch.replace(self.path)
