"""The content of folders, to compare before and after a drill."""

import hashlib
import json
from pathlib import Path

_UNFINISHED = (".writing", ".former", ".deleting", ".locking", ".locked", ".part")


def content_of(path: Path) -> dict[str, str]:
    """Returns relative name → hash of a file, or of every file in a folder that is not hidden.

    Names begin with the name of `path`. The content of a missing path is empty.
    """
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    names = {file: file.relative_to(path.parent) for file in files}
    return {
        str(name): hashlib.blake2b(file.read_bytes()).hexdigest()
        for file, name in names.items()
        if not any(part.startswith(".") for part in name.parts[1:])
    }


def losses_of(folder: Path) -> list[tuple]:
    """Returns (step, loss, gradient norm) of every line in a run folder's metrics; empty if there are none."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text("utf-8").splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith("\n")]  # the last line may be half-written
    return [(record["step"], record["loss"], record["global_norm"]) for record in records]


def leftovers(out: Path, locks: bool = False) -> list[str]:
    """Returns the paths of everything unfinished inside `out` and next to it.

    Args:
        locks: True to include files for flock, which a killed process leaves behind; they are harmless.
    """
    ends = (*_UNFINISHED, ".lock") if locks else _UNFINISHED
    found = [*out.parent.glob(f".{out.name}.*"), *out.rglob(".*")]
    return sorted(str(path) for path in found if path.name.endswith(ends))
