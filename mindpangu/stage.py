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

    Args:
        folder: where the output belongs.
        inputs: JSON-able description of everything that decides the output (settings, hashes of input files).
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Any]):
        self.folder = folder
        self.inputs = json.loads(json.dumps(inputs))

    def is_current(self) -> bool:
        """True when the folder is there, was built from these inputs, and none of its files is missing."""
        stamp = read_stamp(self.folder)
        return (
            stamp is not None
            and stamp["inputs"] == self.inputs
            and all((self.folder / name).stat().st_size == size for name, size in stamp["files"].items())
        )

    @contextlib.contextmanager
    def building(self) -> Iterator[Path]:
        """Yields an empty folder to write into; on success it replaces the stage's folder.

        Two processes that build the same stage take turns (a lock file beside the folder).
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.folder.with_name(f".{self.folder.name}.building")
        with open(self.folder.with_name(f".{self.folder.name}.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            try:
                yield scratch
                files = {str(p.relative_to(scratch)): p.stat().st_size for p in scratch.rglob("*") if p.is_file()}
                (scratch / STAMP).write_text(json.dumps({"inputs": self.inputs, "files": files}, indent=1))
                shutil.rmtree(self.folder, ignore_errors=True)
                scratch.rename(self.folder)
            except OSError as error:
                raise StageError(
                    f"{self.folder} cannot be written: {error.strerror or error}; "
                    "free disk space or change training.output_dir; what was there before is untouched"
                ) from error
            finally:
                shutil.rmtree(scratch, ignore_errors=True)


def read_stamp(folder: Path) -> dict[str, Any] | None:
    """The stamp of a finished stage, or None if the folder is absent, unfinished or incomplete."""
    try:
        stamp = json.loads((folder / STAMP).read_text())
    except (OSError, ValueError):
        return None
    complete = all((folder / name).is_file() for name in stamp["files"])
    return stamp if complete else None


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


class ResultFile:
    """A stage whose whole output is one JSON file, `inputs` included."""

    def __init__(self, path: Path, inputs: Mapping[str, Any]):
        self.path = path
        self.inputs = json.loads(json.dumps(inputs))

    def is_current(self) -> bool:
        try:
            return json.loads(self.path.read_text(encoding="utf-8")).get("inputs") == self.inputs
        except (OSError, ValueError):
            return False

    def write(self, result: Mapping[str, Any]) -> None:
        scratch = self.path.with_name(f".{self.path.name}.building")
        text = json.dumps({"inputs": self.inputs, **result}, indent=1, ensure_ascii=False)
        scratch.write_text(text + "\n", encoding="utf-8")
        scratch.replace(self.path)
