"""Stages of the main job: each builds a folder from its inputs and is skipped if they have not changed.

A stage writes into a scratch folder that gets the final name only once it is complete, so an interrupted stage leaves
nothing half-written. The file `stage.json` in the folder records the inputs.
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mindpangu.display import describe_error, short_repr
from mindpangu.errors import StageError
from mindpangu.files import (
    encode_json,
    read_chunks,
    read_json,
    read_json_object,
    scratch_folder,
    write_durably,
    write_json,
)
from mindpangu.locks import locked
from mindpangu.untrusted import inside, read_record

STAMP = "stage.json"

_Record = TypeVar("_Record")


class Stage:
    """One folder and the inputs it is made from.

        with stage.locked():
            if not stage.is_current():
                with stage.building() as folder: ...

    Args:
        folder: the output folder.
        inputs: JSON-serialisable description of all that determines the output (settings, hashes of input files).
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Any]):
        self.folder = folder
        self.inputs = json.loads(json.dumps(inputs))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the stage's lock. Of two processes that need the same stage, the second waits and then finds it done.

        Raises:
            StageError: the lock cannot be created.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.folder, wait=math.inf))
            except OSError as error:
                raise self._failure(error) from error
            yield

    def is_current(self) -> bool:
        """True if the folder was built from these inputs and none of its files has changed since."""
        stamp = read_json_object(self.folder / STAMP)
        files = stamp.get("files")
        return (
            stamp.get("inputs") == self.inputs
            and isinstance(files, dict)
            and all(self._is_unchanged(name, digest) for name, digest in files.items())
        )

    def _is_unchanged(self, name: str, digest: Any) -> bool:
        """True if a file of the folder has this hash. A name that leads out of the folder counts as changed."""
        try:
            path = inside(self.folder, name)
            return path.is_file() and not path.is_symlink() and hash_files([path]) == digest
        except (OSError, ValueError):
            return False

    def has_other_inputs(self) -> bool:
        """True if the folder records that it was built from other inputs."""
        stamp = read_json_object(self.folder / STAMP)
        return "inputs" in stamp and stamp["inputs"] != self.inputs

    @contextlib.contextmanager
    def building(self) -> Iterator[Path]:
        """Yields an empty folder to write into. On success it replaces the stage's folder.

        Raises:
            StageError: the disk is full or cannot be written, or the folder has files that no stage has written.
        """
        self._refuse_other_files()
        try:
            with scratch_folder(self.folder, replace=True) as scratch:
                yield scratch
                written = sorted(path for path in scratch.rglob("*") if path.is_file())
                files = {str(path.relative_to(scratch)): hash_files([path]) for path in written}
                write_durably(scratch / STAMP, encode_json({"inputs": self.inputs, "files": files}))
        except OSError as error:
            raise self._failure(error) from error

    def _refuse_other_files(self) -> None:
        """Raises StageError if something in the folder is somebody else's: building replaces the whole folder."""
        if self.folder.exists() and not self.folder.is_dir():
            raise StageError(f"{self.folder} is not a folder; move it, or choose another --training.run_name")
        stamp = self.folder / STAMP
        written = read_json_object(stamp).get("files")
        if os.path.lexists(stamp) and not isinstance(written, dict):
            return  # the stamp is damaged, so nobody knows what the stage wrote
        known = {STAMP, *(written or ())}
        for path in self.folder.rglob("*"):
            name = str(path.relative_to(self.folder))
            if name not in known and (path.is_symlink() or not path.is_dir()):
                raise StageError(
                    f"{self.folder} would be replaced, but has {short_repr(name)}, which mindpangu did not write; "
                    "move it, or choose another --training.run_name"
                )

    def _failure(self, error: OSError) -> StageError:
        return StageError(
            f"{self.folder} cannot be written: {error.strerror or error}; "
            "free disk space or change training.output_dir; the folder's earlier content is untouched"
        )


class ResultFile:
    """A stage whose only output is one JSON file, which also records the inputs."""

    def __init__(self, path: Path, inputs: Mapping[str, Any]):
        self.path = path
        self.inputs = json.loads(json.dumps(inputs))

    def is_current(self, record: type | None = None) -> bool:
        """True if the file was written for these inputs.

        Args:
            record: the dataclass of the result. If it is given, a result that `read` would refuse counts as outdated.
        """
        if read_json_object(self.path).get("inputs") != self.inputs:
            return False
        try:
            return record is None or self.read(record) is not None
        except StageError:
            return False

    def read(self, record: type[_Record]) -> _Record:
        """Reads the result as a dataclass, without the inputs.

        Raises:
            StageError: the file is missing or damaged.
        """
        try:
            content = read_json(self.path)
            if isinstance(content, dict):
                content.pop("inputs", None)
            return read_record(record, content)
        except (OSError, ValueError) as error:
            raise StageError(
                f"{self.path} cannot be used: {describe_error(error)}; remove it, and its result is computed again"
            ) from None

    def write(self, result: Mapping[str, Any]) -> None:
        """Creates or replaces the file: the inputs, then `result`."""
        write_json(self.path, {"inputs": self.inputs, **result})


def refuse_other_results(folder: Path, record: str, fields: Collection[str], results: Collection[str] = ()) -> None:
    """Refuses to write results to a folder that has files of the same names from another program.

    Args:
        folder: the folder of the results; it need not exist.
        record: name of a JSON file among the results. An earlier result has it, with these fields, or has been damaged.
        fields: fields of the record.
        results: names of the other results.

    Raises:
        StageError: there is a result without the record, or another file in the place of the record.
    """
    try:
        content = read_json(folder / record)
    except FileNotFoundError:
        found = next((name for name in results if os.path.lexists(folder / name)), None)
        if found is not None:
            raise _other_file_error(folder / found) from None
    except (OSError, ValueError):
        pass
    else:
        if not isinstance(content, dict) or not content.keys() >= set(fields):
            raise _other_file_error(folder / record)


def _other_file_error(path: Path) -> StageError:
    return StageError(f"{path} would be replaced, but is not a result of mindpangu, or was damaged; move or remove it")


def hash_files(paths: Iterable[Path]) -> str:
    """Returns a BLAKE2 hash of the contents of files, in the order given. File names are not hashed."""
    total = hashlib.blake2b(digest_size=16)
    for path in paths:
        digest = hashlib.blake2b(digest_size=16)
        for chunk in read_chunks(path):
            digest.update(chunk)
        total.update(digest.digest())
    return total.hexdigest()
