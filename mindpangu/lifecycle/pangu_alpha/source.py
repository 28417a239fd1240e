"""Reading all tensors of a release of PanGu-α, however they are divided into files.

    one file                  Pangu-alpha_2.6B.ckpt
    one file per rank         filerted_0.ckpt … filerted_511.ckpt, or rank_0/….ckpt …, with a strategy file
    next to either            word_embedding.npy, position_embedding.npy, top_query_embedding.npy

Tensors are read on demand, one at a time.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindpangu.display import describe_error, short_text
from mindpangu.errors import CheckpointError
from mindpangu.lifecycle.pangu_alpha.mindspore_file import MindSporeFile
from mindpangu.lifecycle.pangu_alpha.strategy import Layout, owners, read_strategy
from mindpangu.lifecycle.pangu_alpha.weights import OLD_NAMES, SEPARATE_FILES, is_training_state
from mindpangu.untrusted import open_file


class PanguAlphaSource:
    """The tensors of a release by their current names.

    Attributes:
        path: a .ckpt file, or the folder of a set.
        skipped: names of tensors that only training needs (Adam's moments, counters).

    Args:
        path: see above.
        strategy: the strategy file of a set; None for a single file.

    Raises:
        CheckpointError: a file is missing or damaged, or does not belong to the set.
    """

    def __init__(self, path: Path, strategy: Path | None):
        self.path = path
        folder, paths = _files(path)
        if len(paths) > 1 and strategy is None:
            raise CheckpointError(
                f"{path} has {len(paths)} .ckpt files; give the strategy file that they were saved with"
            )
        if len(paths) == 1 and strategy is not None:
            raise CheckpointError(f"{paths[0]} is one file; the strategy {strategy} is for a set with a file per rank")
        self._layouts = None if strategy is None else _read_layouts(strategy, path, len(paths))
        self._files = [MindSporeFile(each) for each in tqdm(paths, unit="file", desc="open", disable=None)]
        self._stored, self.skipped = _current_names(self._files[0])
        for file in self._files[1:]:
            self._require_same_tensors(file)
        self._tables = {name: folder / file for name, file in SEPARATE_FILES.items() if os.path.lexists(folder / file)}

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return {*self._stored, *self._tables}

    def read(self, name: str) -> np.ndarray:
        """Reads a complete tensor as it is stored.

        Raises:
            CheckpointError: a slice or table cannot be read or does not fit, or two tables differ.
        """
        if name not in self._tables:
            return self._from_files(name)
        table = _load_table(self._tables[name])
        if name in self._stored and not np.array_equal(self._from_files(name), table):
            raise CheckpointError(
                f"{name} is in {self._files[0].path} and in {self._tables[name]}, with different values; remove "
                "the .npy file, or give a folder that has only one of them"
            )
        return table

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a complete tensor. Raises the same errors as `read`."""
        if name in self._tables:
            return _load_table(self._tables[name]).shape
        stored = self._stored[name]
        shape = self._files[0].shape(stored)
        return shape if self._layouts is None else self._whole_shape(self._layouts, stored, shape)

    def _from_files(self, name: str) -> np.ndarray:
        """Reads a tensor from the .ckpt files and merges its slices."""
        stored = self._stored[name]
        first = self._files[0]
        if self._layouts is None:
            return first.read(stored)
        shape = first.shape(stored)
        whole_shape = self._whole_shape(self._layouts, stored, shape)
        dtype = None
        for rank, position in self._layouts[stored].slices(shape):
            values = self._files[rank].read(stored)
            if dtype is None:
                dtype = values.dtype
                whole = np.empty(whole_shape, dtype)
            if values.shape != shape or values.dtype != dtype:
                raise CheckpointError(
                    f"{self._files[rank].path}: {stored} is {values.dtype} {list(values.shape)}, in the other files of "
                    f"the set {dtype} {list(shape)}"
                )
            whole[position] = values
        return whole

    def _whole_shape(self, layouts: Mapping[str, Layout], stored: str, slice_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of a complete tensor from that of its slices."""
        if stored not in layouts:
            raise CheckpointError(f"{self._files[0].path} has {stored}, which the strategy file does not name")
        try:
            return layouts[stored].whole_shape(slice_shape)
        except ValueError as error:
            raise CheckpointError(f"{self._files[0].path}: {stored} does not fit the strategy file: {error}") from None

    def _require_same_tensors(self, file: MindSporeFile) -> None:
        differing = sorted(set(file.names) ^ set(self._files[0].names))
        differing = [name for name in differing if not is_training_state(name)]
        if differing:
            first = self._files[0]
            has, lacks = (file, first) if differing[0] in file.names else (first, file)
            raise CheckpointError(f"{lacks.path} has no tensor {differing[0]}, which {has.path} has")


def _files(path: Path) -> tuple[Path, list[Path]]:
    """Returns the folder and its .ckpt files; the files of a set are ordered by rank."""
    if path.is_file():
        return path.parent, [path]
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist; give a .ckpt file, or the folder of a set")
    files = sorted(path.glob("*.ckpt"))
    matches = {each: re.search(r"(\d+)\.ckpt$", each.name) for each in files}
    if not files:
        files = sorted(path.glob("rank_*/*.ckpt"))
        matches = {each: re.fullmatch(r"rank_(\d+)", each.parent.name) for each in files}
    if not files:
        raise CheckpointError(f"{path} has neither .ckpt files nor folders rank_0, rank_1 … with one")
    if len(files) == 1:
        return path, files
    ranks = {each: int(match[1]) for each, match in matches.items() if match is not None}
    unknown = [each for each in files if each not in ranks]
    if unknown:
        raise CheckpointError(f"{unknown[0]} has no rank in its name; rename it like the other files in {path}")
    by_rank: dict[int, Path] = {}
    for each, rank in ranks.items():
        if by_rank.setdefault(rank, each) != each:
            raise CheckpointError(f"{by_rank[rank]} and {each} both belong to rank {rank}; remove one")
    missing = sorted(set(range(max(by_rank) + 1)) - set(by_rank))
    if missing:
        raise CheckpointError(f"the set in {path} lacks the file of rank {missing[0]} ({len(missing)} are missing)")
    return path, [by_rank[rank] for rank in sorted(by_rank)]


def _read_layouts(strategy: Path, path: Path, num_files: int) -> dict[str, Layout]:
    layouts = read_strategy(strategy)
    ranks = next(iter(layouts.values())).num_ranks
    if ranks != num_files:
        raise CheckpointError(
            f"strategy file {strategy} is for {ranks} ranks, but the set in {path} has {num_files} files"
        )
    for name, layout in layouts.items():
        try:
            owners(layout)
        except ValueError as error:
            raise CheckpointError(f"strategy file {strategy}: the layout of {name}: {error}") from None
    return layouts


def _current_names(file: MindSporeFile) -> tuple[dict[str, str], list[str]]:
    """Returns current name → name in the file for the model's tensors, and the names of all other tensors."""
    stored: dict[str, str] = {}
    skipped = []
    for name in file.names:
        current = OLD_NAMES.get(name, name)
        if is_training_state(name):
            skipped.append(name)
        elif stored.setdefault(current, name) != name:
            raise CheckpointError(f"{file.path} has {name} and {stored[current]}, two names of one tensor")
    return stored, skipped


def _load_table(path: Path) -> np.ndarray:
    try:
        open_file(path, follow_link=True).close()
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy parses the header as Python code, which can raise anything
        raise CheckpointError(f"{path} is not a complete .npy file: {short_text(describe_error(error))}") from None
    if not isinstance(table, np.memmap):  # a zip archive
        raise CheckpointError(f"{path} is not a .npy file")
    return table
