"""All tensors of a release of PanGu-α, however they are divided into files.

    one file                  Pangu-alpha_2.6B.ckpt
    one file per rank         filerted_0.ckpt … filerted_511.ckpt, or rank_0/….ckpt …, with a strategy file
    and beside either         word_embedding.npy, position_embedding.npy, top_query_embedding.npy

A tensor is read when it is asked for; memory holds one.
"""

import re
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mindpangu.errors import CheckpointError
from mindpangu.lifecycle.pangu_alpha.mindspore_file import MindSporeFile
from mindpangu.lifecycle.pangu_alpha.strategy import Layout, owners, read_strategy
from mindpangu.lifecycle.pangu_alpha.weights import OLD_NAMES, SEPARATE_FILES, is_training_state


class PanguAlphaSource:
    """The tensors of a release by their present names.

    Attributes:
        skipped: names of tensors of the training (Adam's moments, counters), which are not of the model.

    Args:
        path: a .ckpt file, or the folder of a set.
        strategy: the strategy file; needed for a set, and only for one.

    Raises:
        CheckpointError: a file that is missing, damaged, or not of this set.
    """

    def __init__(self, path: Path, strategy: Path | None):
        self.path = path
        folder, paths = _files(path)
        if len(paths) > 1 and strategy is None:
            raise CheckpointError(f"{path} has {len(paths)} .ckpt files: give the strategy file they were saved with")
        if len(paths) == 1 and strategy is not None:
            raise CheckpointError(f"{paths[0]} is one file; the strategy {strategy} is for a set with a file per rank")
        self._layouts = None if strategy is None else _layouts_of(strategy, path, len(paths))
        self._files = [MindSporeFile(each) for each in tqdm(paths, unit="file", desc="open", disable=None)]
        self._stored, self.skipped = _present_names(self._files[0])
        for file in self._files[1:]:
            self._require_same_tensors(file)
        self._tables = {name: folder / file for name, file in SEPARATE_FILES.items() if (folder / file).is_file()}

    @property
    def names(self) -> set[str]:
        return {*self._stored, *self._tables}

    def read(self, name: str) -> np.ndarray:
        """A whole tensor, as it is stored.

        Raises:
            CheckpointError: a slice or table that cannot be read or does not fit, or two tables that differ.
        """
        if name not in self._tables:
            return self._from_files(name)
        table = _load_table(self._tables[name])
        if name in self._stored and not np.array_equal(self._from_files(name), table):
            raise CheckpointError(
                f"{name} is in {self._files[0].path} and in {self._tables[name]}, with other values; remove the .npy, "
                "or give a folder that has one of them"
            )
        return table

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a whole tensor. Raises like `read`."""
        if name in self._tables:
            return _load_table(self._tables[name]).shape
        shape = self._files[0].shape(self._stored[name])
        return shape if self._layouts is None else self._whole_shape(name, shape)

    def _from_files(self, name: str) -> np.ndarray:
        stored, first = self._stored[name], self._files[0]
        if self._layouts is None:
            return first.read(stored)
        shape, whole = first.shape(stored), None
        whole_shape = self._whole_shape(name, shape)
        for rank, place in self._layouts[stored].slices(shape):
            part = self._files[rank].read(stored)
            if whole is None:
                whole = np.empty(whole_shape, part.dtype)
            if part.shape != shape or part.dtype != whole.dtype:
                raise CheckpointError(
                    f"{self._files[rank].path}: {stored} is {part.dtype} {list(part.shape)}, in the other files of the "
                    f"set {whole.dtype} {list(shape)}"
                )
            whole[place] = part
        return whole

    def _whole_shape(self, name: str, slice_shape: tuple[int, ...]) -> tuple[int, ...]:
        stored = self._stored[name]
        if stored not in self._layouts:
            raise CheckpointError(f"{self._files[0].path} has {stored}, which the strategy file does not name")
        try:
            return self._layouts[stored].whole_shape(slice_shape)
        except ValueError as error:
            raise CheckpointError(f"{self._files[0].path}: {stored} does not fit the strategy file: {error}") from None

    def _require_same_tensors(self, file: MindSporeFile) -> None:
        differing = sorted(set(file.names) ^ set(self._files[0].names))
        differing = [name for name in differing if not is_training_state(name)]
        if differing:
            has, lacks = (file, self._files[0]) if differing[0] in file.names else (self._files[0], file)
            raise CheckpointError(f"{lacks.path} has no tensor {differing[0]}, which {has.path} has")


def _files(path: Path) -> tuple[Path, list[Path]]:
    """The folder and its .ckpt files, those of a set in the order of their ranks."""
    if path.is_file():
        return path.parent, [path]
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist; give a .ckpt file, or the folder of a set")
    files = sorted(path.glob("*.ckpt"))
    ranked = {each: re.search(r"(\d+)\.ckpt$", each.name) for each in files}
    if not files:
        files = sorted(path.glob("rank_*/*.ckpt"))
        ranked = {each: re.fullmatch(r"rank_(\d+)", each.parent.name) for each in files}
    if not files:
        raise CheckpointError(f"{path} has neither .ckpt files nor folders rank_0, rank_1 … with one")
    if len(files) == 1:
        return path, files
    unknown = [each for each, match in ranked.items() if match is None]
    if unknown:
        raise CheckpointError(f"{unknown[0]} is not numbered by its rank, as the other files in {path} are")
    by_rank: dict[int, Path] = {}
    for each, match in ranked.items():
        if by_rank.setdefault(int(match[1]), each) != each:
            raise CheckpointError(f"{by_rank[int(match[1])]} and {each} are both of rank {int(match[1])}")
    missing = sorted(set(range(max(by_rank) + 1)) - set(by_rank))
    if missing:
        raise CheckpointError(f"the set in {path} lacks the file of rank {missing[0]} ({len(missing)} are missing)")
    return path, [by_rank[rank] for rank in sorted(by_rank)]


def _layouts_of(strategy: Path, path: Path, num_files: int) -> dict[str, Layout]:
    layouts = read_strategy(strategy)
    ranks = next(iter(layouts.values())).num_ranks
    if ranks != num_files:
        raise CheckpointError(
            f"strategy file {strategy} is of {ranks} ranks, but the set in {path} has {num_files} files"
        )
    for name, layout in layouts.items():
        try:
            owners(layout)
        except ValueError as error:
            raise CheckpointError(f"strategy file {strategy}: the layout of {name}: {error}") from None
    return layouts


def _present_names(file: MindSporeFile) -> tuple[dict[str, str], list[str]]:
    """Present name → name in the file, of the model's tensors; names of the others."""
    stored: dict[str, str] = {}
    skipped = []
    for name in file.names:
        if is_training_state(name):
            skipped.append(name)
        elif stored.setdefault(OLD_NAMES.get(name, name), name) != name:
            raise CheckpointError(
                f"{file.path} has {name} and {stored[OLD_NAMES.get(name, name)]}, two names of one tensor"
            )
    return stored, skipped


def _load_table(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a whole .npy file: {error}") from None
