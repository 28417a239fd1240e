"""Experts from a checkpoint one by one, weights only, as generation asks for them."""

import numpy as np

from mindpangu.checkpoint import CheckpointReader, shards_of_experts
from mindpangu.checkpoint.expert_tensors import ExpertTensors
from mindpangu.language_model.parts import ModelParts, require_header


class ExpertReader:
    """Reads experts of a model, whichever ranks have written them. A file is hashed when it is first read."""

    def __init__(self, reader: CheckpointReader, parts: ModelParts):
        self._reader, self._parts = reader, parts
        self._number_of = shards_of_experts(reader.files)
        self._verified: set[tuple[int, str, int]] = set()

    def __call__(self, layer: int, domain: int, index: int) -> dict[str, np.ndarray]:
        """Its weights, whole, float32.

        Raises:
            CheckpointError: a file that is missing, altered, another expert's, or of other shapes.
        """
        expert = layer, self._parts.domains[domain].name, index
        number = self._number_of.get(expert, 1)
        tensors = ExpertTensors(
            self._reader, *expert, number, self._parts.expert_shapes, verify=expert not in self._verified
        )
        for part, header in enumerate(tensors.headers):
            expected = self._parts.expert_header(layer, domain, index, (part, number))
            require_header(self._reader.folder / expected.name, header, expected)
        self._verified.add(expert)
        return {name: tensors.read(name) for name in self._parts.expert_shapes}
