"""Reports that the ranks writing one checkpoint leave for each other, as files in its scratch folder.

    .written_00002    rank 2 has written its files; the report holds their manifest entries
    .failed_00002     rank 2 could not write its files; the report holds the reason
    .left_00002       rank 2 gave up because another rank failed

If a rank fails, the reports stay in the scratch folder, so that a rank that arrives late also learns the reason instead
of waiting. The last rank to arrive removes the folder; if some never arrive, the next training in the run folder does.
"""

import contextlib
import json
from pathlib import Path

from mindpangu.checkpoint.fingerprint import Entry
from mindpangu.errors import CheckpointError
from mindpangu.files import write_durably
from mindpangu.locks import delete


class AnotherRankFailed(CheckpointError):
    """The checkpoint cannot be written because another rank failed. The message names that rank."""


class RankReports:
    """The reports of the ranks that write one checkpoint, as one of them sees them.

    Args:
        folder: the final folder of the checkpoint, for error messages.
        scratch: the checkpoint's scratch folder, which all ranks see. The first rank to arrive creates it.
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
        """Reports that this rank is giving up because of `error`. The last rank to leave removes the scratch folder."""
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
        # A report is renamed into place, so that no rank reads half of one. Rank 0 may publish the folder as soon as it
        # sees the last report, so nothing here may touch the folder after the rename.
        unfinished = self._path("part_of", self._rank)
        unfinished.unlink(missing_ok=True)
        write_durably(unfinished, data)
        unfinished.rename(self._path(kind, self._rank))

    def _path(self, kind: str, rank: int) -> Path:
        return self._scratch / f".{kind}_{rank:05d}"
