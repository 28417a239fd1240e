"""Memory for the arrays of an expert store: anonymous, or a mapped scratch file that may be larger than memory."""

import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindpangu.errors import ExpertStoreError


class HostMemory:
    """Allocates float32 arrays of zeros.

    Args:
        num_bytes: total size of the arrays, each rounded up to whole pages (`page_rounded`).
        folder: where to create and map a scratch file of this size; None for anonymous memory. The file has no
            name, so it disappears when the process ends, even if it is killed.

    Raises:
        ExpertStoreError: the disk is full, the folder cannot be written, or memory cannot be allocated.
    """

    def __init__(self, num_bytes: int, folder: Path | None = None):
        self.folder = folder
        self._num_bytes = num_bytes
        self._used = 0
        self._map: mmap.mmap | None = None
        if folder is None or num_bytes == 0:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                # allocates the blocks now: a disk that fills up later would kill the process in the middle of a step
                os.posix_fallocate(file.fileno(), 0, num_bytes)
                self._map = mmap.mmap(file.fileno(), num_bytes)
        except OSError as error:
            raise ExpertStoreError(
                f"the expert store needs a scratch file of {num_bytes / 1e6:,.1f} MB in {folder}: "
                f"{error.strerror or error}; free space there, or set experts.storage_folder to a folder with room"
            ) from None

    @property
    def mapped(self) -> bool:
        """True if the arrays are mapped from a file."""
        return self._map is not None

    @property
    def location(self) -> str:
        """Location of the arrays, for the log."""
        return f"mapped from {self.folder}" if self.mapped else "in memory"

    def zeros(self, shape: Sequence[int]) -> np.ndarray:
        """Allocates a contiguous float32 array of zeros; in a mapped file it begins on a page boundary."""
        if self._map is None:
            try:
                return np.zeros(shape, np.float32)
            except MemoryError as error:
                raise ExpertStoreError(
                    f"the expert store needs {self._num_bytes / 1e6:,.1f} MB of memory: {error}; "
                    "set experts.storage to mapped, or make the model smaller"
                ) from None
        count = int(np.prod(shape))
        array = np.frombuffer(self._map, np.float32, count, self._used).reshape(shape)
        self._used += page_rounded(4 * count)
        return array

    def will_need(self, rows: np.ndarray) -> None:
        """Asks the kernel to read these rows of an array from the file ahead of use; does not wait."""
        if self._map is None:
            return
        start = rows.ctypes.data - np.frombuffer(self._map, np.uint8, 1).ctypes.data
        first_page = start // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, first_page, start + rows.nbytes - first_page)


def page_rounded(num_bytes: int) -> int:
    """Rounds a size up to whole pages."""
    return -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
