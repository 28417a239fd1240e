"""Reads single experts from a checkpoint, weights only, as generation needs them."""

import numpy as np

from mindpangu.checkpoint import CheckpointReader, shards_of_experts
from mindpangu.checkpoint.expert_tensors import ExpertTensors
from mindpangu.language_model.parts import ModelParts, require_header


class ExpertReader:
    """Reads experts of a model, whichever ranks wrote them. A file is hashed when it is first read."""

    def __init__(self, reader: CheckpointReader, parts: ModelParts):
        self._reader = reader
        self._parts = parts
        self._num_files_of = shards_of_experts(reader.files)
        self._verified: set[tuple[int, str, int]] = set()

    def __call__(self, layer: int, domain: int, index: int) -> dict[str, np.ndarray]:
        """Reads the whole weights of an expert, as float32.

        Raises:
            CheckpointError: the file is missing, altered, another expert's, or of other shapes.
        """
        expert = layer, self._parts.domains[domain].name, index
        num_files = self._num_files_of.get(expert, 1)
        tensors = ExpertTensors(
            self._reader, *expert, num_files, self._parts.expert_shapes, verify=expert not in self._verified
        )
        for part, header in enumerate(tensors.headers):
            expected = self._parts.expert_header(layer, domain, index, (part, num_files))
            require_header(self._reader.folder / expected.name, header, expected)
        self._verified.add(expert)
        return {name: tensors.read(name) for name in self._parts.expert_shapes}
