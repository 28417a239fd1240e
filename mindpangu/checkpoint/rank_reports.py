"""How the ranks that write one checkpoint tell each other how it went: files in its scratch folder.

    .written_00002    rank 2 has written its files; holds their manifest entries
    .failed_00002     rank 2 could not; holds the reason
    .left_00002       rank 2 gave up because another rank failed

If a rank fails, only the reports stay in the scratch folder, so that a rank that comes late learns the reason, too,
instead of waiting. The last rank removes it, or the next training in the run folder.
"""

import contextlib
import json
from pathlib import Path

from mindpangu.checkpoint.fingerprint import Entry
from mindpangu.errors import CheckpointError
from mindpangu.files import write_durably
from mindpangu.locks import delete


class AnotherRankFailed(CheckpointError):
    """The checkpoint cannot be written because of another rank, which the message names."""


class RankReports:
    """The reports of the ranks that write one checkpoint, as one of them sees them.

    Args:
        folder: the final folder of the checkpoint, for error messages.
        scratch: its scratch folder, which all ranks see. The first rank that comes creates it.
        rank, ranks: rank of this process, and the number of ranks.
    """

    def __init__(self, folder: Path, scratch: Path, rank: int, ranks: int):
        self._folder = folder
        self._scratch = scratch
        self._rank = rank
        self._ranks = ranks

    def report_written(self, files: dict[str, Entry]) -> None:
        """Tells rank 0 which files this rank has written."""
        self._put("written", json.dumps(files).encode())

    def has_written(self, rank: int) -> bool:
        """True if another rank has written its files."""
        return self._path("written", rank).exists()

    def pop_written(self, rank: int) -> dict[str, Entry]:
        """Returns the files that another rank has written, and removes its report."""
        path = self._path("written", rank)
        files: dict[str, Entry] = json.loads(path.read_bytes())
        path.unlink()
        return files

    def raise_failure(self) -> None:
        """Raises AnotherRankFailed with the reason if a rank has failed."""
        with contextlib.suppress(FileNotFoundError):  # rank 0 may publish the folder at any moment
            for report in sorted(self._scratch.glob(".failed_*")):
                reason = report.read_text("utf-8")
                rank = int(report.name.removeprefix(".failed_"))
                raise AnotherRankFailed(f"checkpoint {self._folder}: rank {rank} could not write: {reason}")

    def leave(self, error: BaseException) -> None:
        """Reports that this rank has failed. The last rank to leave removes the scratch folder."""
        if self._ranks > 1:
            with contextlib.suppress(OSError):
                if isinstance(error, AnotherRankFailed):
                    self._put("left", b"")
                else:
                    self._scratch.mkdir(parents=True, exist_ok=True)
                    self._put("failed", (str(error) or type(error).__name__).encode())
        left = [path for kind in ("failed", "left") for path in self._scratch.glob(f".{kind}_*")]
        if self._ranks == 1 or len(left) == self._ranks:
            delete(self._scratch)
        elif self._rank == 0:
            with contextlib.suppress(OSError):
                for path in self._scratch.iterdir():
                    if not path.name.startswith((".failed_", ".left_", ".part_of_")):
                        delete(path)

    def _put(self, kind: str, data: bytes) -> None:
        # The report is renamed into place, so a reader never sees half of it. Rank 0 may publish the folder as soon as
        # it sees the last one, so nothing here may touch the folder after the rename.
        unfinished = self._path("part_of", self._rank)
        unfinished.unlink(missing_ok=True)
        write_durably(unfinished, data)
        unfinished.rename(self._path(kind, self._rank))

    def _path(self, kind: str, rank: int) -> Path:
        return self._scratch / f".{kind}_{rank:05d}"
