"""Functions that write slowly, so that another process has time to interfere; each gets the number of its writer."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

from mindpangu.checkpoint import CheckpointReader, CheckpointWriter, prune
from mindpangu.files import encode_json, link_folder, scratch_files, write_bytes_atomically, write_durably

OUT = Path("out")
PIECES = 50


def write_file(who: int) -> None:
    write_bytes_atomically(OUT / "file", pieces(who))


def write_several_files(who: int) -> None:
    with scratch_files(OUT) as scratch:
        for name in "abc":
            write_durably(scratch / name, pieces(who))


def link(who: int) -> None:
    link_folder(Path("run/data"), OUT)


def pieces(who: int) -> Iterator[bytes]:
    for _ in range(PIECES):
        time.sleep(0.001)
        yield bytes([who])


def save_and_prune() -> None:
    """Saves a checkpoint of the next step twice a second, and keeps only one, like a training in ./live."""
    reader = CheckpointReader(Path("run"))
    live = Path("live/checkpoint")
    for step in itertools.count(reader.step + 1):
        with CheckpointWriter(live, step) as writer:
            for name in reader.files:
                if name == "state.json":
                    writer.write(name, encode_json(reader.json(name) | {"step": step}))
                else:
                    writer.take(name, reader)
        prune(live, 1)
        time.sleep(0.5)
