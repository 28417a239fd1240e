"""Reads single experts from a checkpoint for generation, without their Adam state."""

import numpy as np

from mindpangu.checkpoint import CheckpointReader, shards_of_experts
from mindpangu.checkpoint.expert_tensors import ExpertTensors
from mindpangu.language_model.parts import ModelParts, require_header


class ExpertReader:
    """Reads experts of a model, whichever ranks wrote them. Verifies the hash of a file when it is first read."""

    def __init__(self, reader: CheckpointReader, parts: ModelParts):
        self._reader = reader
        self._parts = parts
        self._num_files_of = shards_of_experts(reader.files)
        self._verified: set[tuple[int, str, int]] = set()

    def __call__(self, layer: int, domain: int, index: int) -> dict[str, np.ndarray]:
        """Reads the complete weights of an expert as float32.

        Raises:
            CheckpointError: a file is missing or altered, belongs to another expert, or has other shapes.
        """
        expert = layer, self._parts.domains[domain].name, index
        num_files = self._num_files_of.get(expert, 1)
        tensors = ExpertTensors(
            self._reader, *expert, num_files, self._parts.expert_shapes, verify=expert not in self._verified
        )
        for shard, header in enumerate(tensors.headers):
            expected = self._parts.expert_header(layer, domain, index, (shard, num_files))
            require_header(self._reader.folder / expected.name, header, expected)
        self._verified.add(expert)
        return {name: tensors.read(name) for name in self._parts.expert_shapes}
