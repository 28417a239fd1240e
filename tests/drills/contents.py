"""The content of folders, to compare before and after a drill."""

import hashlib
import json
from pathlib import Path

_CLOCKS = ("evaluation.json", "samples.json")  # their results hold durations


def content_of(path: Path) -> dict[str, str]:
    """Returns relative name → hash of a file, or of everything in a folder that is not hidden, without durations."""
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    names = {file: file.relative_to(path.parent) for file in files}
    return {
        str(name): hashlib.blake2b(_without_clocks(file)).hexdigest()
        for file, name in names.items()
        if not any(part.startswith(".") for part in name.parts[1:])
    }


def losses_of(folder: Path) -> list[tuple]:
    """Returns (step, loss, gradient norm) of every line in a run folder's metrics."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [(record["step"], record["loss"], record["global_norm"]) for record in records]


def leftovers(folder: Path) -> set[str]:
    """Returns the names in a folder that begin with a dot, except locks."""
    return {path.name for path in folder.iterdir() if path.name.startswith(".") and not path.name.endswith("lock")}


def _without_clocks(file: Path) -> bytes:
    data = file.read_bytes()
    if file.name not in _CLOCKS:
        return data
    return json.dumps({key: value for key, value in json.loads(data).items() if "second" not in key}).encode()
