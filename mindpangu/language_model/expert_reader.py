"""Experts from a checkpoint one by one, weights only, as generation asks for them."""

import numpy as np

from mindpangu.checkpoint import CheckpointReader, ExpertFile, parts_of_experts
from mindpangu.checkpoint.tensor_file import TensorFile
from mindpangu.errors import CheckpointError
from mindpangu.experts import SLAB_TENSORS
from mindpangu.language_model.parts import ModelParts, require_header
from mindpangu.parallel.expert_share import ExpertShare
from mindpangu.parallel.sharding import Part


class ExpertReader:
    """Reads experts of a model, whichever ranks have written them. A file is hashed when it is first read."""

    def __init__(self, reader: CheckpointReader, parts: ModelParts):
        self._reader, self._parts = reader, parts
        self._number_of = parts_of_experts(reader.files)
        self._verified: set[str] = set()

    def __call__(self, layer: int, domain: int, index: int) -> dict[str, np.ndarray]:
        """The tensors of SLAB_TENSORS, whole, float32.

        Raises:
            CheckpointError: a file that is missing, altered, another expert's, or of other shapes.
        """
        number = self._number_of.get((layer, self._parts.domains[domain].name, index), 1)
        if number == 1:
            return self._read(layer, domain, index, (0, 1))
        whole = {name: np.empty(shape, np.float32) for name, shape in self._parts.expert_shapes.items()}
        for part in ((rank, number) for rank in range(number)):
            for name, tensor in self._read(layer, domain, index, part).items():
                self._part(name, part).put(tensor, whole[name])
        return whole

    def _read(self, layer: int, domain: int, index: int, part: tuple[int, int]) -> dict[str, np.ndarray]:
        expected = self._parts.expert_header(layer, domain, index, part)
        path = self._reader.folder / expected.name
        if expected.name not in self._verified:
            self._reader.verify(expected.name)
        file = TensorFile(path)
        require_header(path, ExpertFile.of(path, file.metadata), expected)
        for name in SLAB_TENSORS:
            needed, info = self._part(name, part).part_shape, file.tensors.get(name)
            if info is None or info.shape != needed:
                found = "missing" if info is None else f"of shape {list(info.shape)}"
                raise CheckpointError(f"{path}: {name} is {found}; needed: {list(needed)}")
        self._verified.add(expected.name)
        return {name: file.read(name) for name in SLAB_TENSORS}

    def _part(self, name: str, part: tuple[int, int]) -> Part:
        return ExpertShare(tensor=part[0], tensors=part[1]).part(name, self._parts.expert_shapes[name])
